// One result element: the old value, and the updates in the list of its place.
${COMBINE}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let element = group_number(group_id, group_count) * 256u + local;
    if element >= params.len {
        return;
    }
    var rest = element;
    var place = 0u;
    var within = 0u;
    for (var axis = i32(params.rank) - 1; axis >= 0; axis -= 1) {
        let dim = params.dims[axis];
        let at = rest % dim.x;
        rest /= dim.x;
        place += at * dim.y;
        within += at * dim.z;
    }
    var at = load_heads(place);
${LOAD}
${DECLARE}
    while at != 0u {
${WALK}
        at = load_nexts(at - 1u);
    }
${FINISH}
    store_out(element, value);
}
