// Empty lists.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let place = group_number(group_id, group_count) * 256u + local;
    if place < params.places {
        store_heads(place, 0u);
    }
}
