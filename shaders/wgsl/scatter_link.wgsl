// Each index tuple goes to the front of the list of its place.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let tuple = group_number(group_id, group_count) * 256u + local;
    if tuple >= params.tuples {
        return;
    }
    var place = tuple / params.tuples_per_batch * params.places_per_batch;
${EACH}    store_nexts(tuple, atomicExchange(&heads[place], tuple + 1u));
}
