// One block of ${BLOCK} entries in workgroup memory. Pairs are compared with the smaller entry always to the left: merging
// two sorted halves first compares each entry with its mirror image, then with the one half, a quarter, ... of a length away.
var<workgroup> keys_here: array<${KEY}, ${BLOCK}>;
var<workgroup> index_here: array<u32, ${BLOCK}>;

fn order(left: u32, right: u32) {
    let a = Entry(keys_here[left], index_here[left]);
    let b = Entry(keys_here[right], index_here[right]);
    if before(b, a) {
        keys_here[left] = b.key;
        index_here[left] = b.index;
        keys_here[right] = a.key;
        index_here[right] = a.index;
    }
}

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    if group >= params.rows * params.blocks {
        return;
    }
    let row = group / params.blocks;
    let first = (group % params.blocks) * ${BLOCK}u;
    let place = place_of(row);
    for (var n = local; n < ${BLOCK}u; n += ${THREADS}u) {
        let at = first + n;
${LOAD}
    }
    workgroupBarrier();
${SORT}
    for (var n = local; n < ${BLOCK}u; n += ${THREADS}u) {
        let at = first + n;
${STORE}
    }
}
