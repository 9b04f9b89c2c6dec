// Copies ${EACH} vectors of 16 bytes a thread; neighbouring threads have neighbouring vectors. params.len: vectors in all.
@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sink: array<vec4<u32>>;

@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = group_id.x + group_count.x * group_id.y;
    let first = group * ${SPAN}u + local;
${COPIES}}
