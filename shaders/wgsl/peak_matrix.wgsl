// ${CHAINS} independent chains of ${SIDE} x ${SIDE} x ${SIDE} products in every subgroup. Left operands are loaded again in every round and no
// two products of a round have the same operands, so that none can be reused. The sums of one subgroup are stored.
@group(0) @binding(0) var<storage, read> source: array<f16>;
@group(0) @binding(1) var<storage, read_write> sink: array<f32>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>) {
${SETUP}    for (var round = 0u; round < params.rounds; round += 1u) {
${LINKS}    }
    coopStoreT(${SUM}, &sink[(group_id.x % params.len) * ${SQUARE}u], ${SIDE}u);
}
