// One comparison of every pair `params.distance` apart, or of mirror images within `2 * params.distance`, over whole rows.
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_number(group_id, group_count);
    let pair = group * 256u + local;
    let pairs = params.padded / 2u;
    if group >= params.groups || pair >= pairs * params.rows {
        return;
    }
    let row = (pair / pairs) * params.padded;
    let within = (pair % pairs) % params.distance;
    let base = row + ((pair % pairs) / params.distance) * 2u * params.distance;
    let left = base + within;
    let right = base + select(params.distance + within, 2u * params.distance - 1u - within, params.mirror != 0u);
    let a = Entry(load_keys(left), load_places(left));
    let b = Entry(load_keys(right), load_places(right));
    if before(b, a) {
        store_keys(left, b.key);
        store_places(left, b.index);
        store_keys(right, a.key);
        store_places(right, a.index);
    }
}
