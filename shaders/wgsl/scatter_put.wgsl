// A workgroup for each index tuple writes its update, unless a later tuple of the launch names the same place.
const NOWHERE = 0xffffffffu;

var<workgroup> later: atomic<u32>;

// The element at which a tuple's window begins.
fn place_of(tuple: u32) -> u32 {
    var place = tuple / params.tuples_per_batch * params.batch_len;
${EACH}    return place;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let tuple = params.first + group_number(group_id, group_count);
    if tuple >= params.end {
        return;
    }
    if local == 0u {
        atomicStore(&later, 0u);
    }
    workgroupBarrier();
    let own = place_of(tuple);
    for (var other = tuple + 1u + local; other < params.end; other += 64u) {
        if own == place_of(other) {
            atomicStore(&later, 1u);
            break;
        }
    }
    workgroupBarrier();
    if own == NOWHERE || atomicLoad(&later) != 0u {
        return;
    }
    for (var within = local * ${STEP}u; within < params.window; within += 64u * ${STEP}u) {
        var rest = within;
        var to = params.data_offset + own;
        for (var axis = i32(params.rank) - 1; axis >= 0; axis -= 1) {
            let dim = params.dims[axis];
            if dim.z != 0u {
                to += rest % dim.x * dim.w;
                rest /= dim.x;
            }
        }
        store${COUNT}_out(to, load${COUNT}_updates(params.updates_offset + tuple * params.window + within));
    }
}
