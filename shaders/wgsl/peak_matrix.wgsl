// ${CHAINS} independent chains of ${SIDE} x ${SIDE} x ${SIDE} products in every subgroup, operands loaded once. The sums of the first
// subgroup of a workgroup are stored.
@group(0) @binding(0) var<storage, read> source: array<f16>;
@group(0) @binding(1) var<storage, read_write> sink: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>) {
    let left = coopLoadT<coop_mat${SIDE}x${SIDE}<f16, A>>(&source[0], ${SIDE}u);
    let right = coopLoadT<coop_mat${SIDE}x${SIDE}<f16, B>>(&source[${SIDE}], ${SIDE}u);
${SETUP}    for (var round = 0u; round < params.rounds; round += 1u) {
${LINKS}    }
    coopStoreT(${SUM}, &sink[(group_id.x % params.len) * ${SQUARE}u], ${SIDE}u);
}
