// ${CHAINS} independent chains of multiply-adds on vectors of four in every thread, ${UNROLL} links a round. What they give is
// stored, so that none of it can be left out; factor and addend are parameters, so that nothing can be folded.
@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sink: array<vec4<u32>>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let factor = vec4<${V}>(${V}(bitcast<f32>(params.factor)));
    let addend = vec4<${V}>(${V}(bitcast<f32>(params.addend)));
${SETUP}    for (var round = 0u; round < params.rounds; round += 1u) {
${LINKS}    }
    let sum = ${SUM};
    if group_id.x * ${THREADS}u + local < params.len {
        sink[group_id.x * ${THREADS}u + local] = bitcast<vec4<u32>>(vec4<f32>(sum));
    }
}
