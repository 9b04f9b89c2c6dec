//! Small kernels with known answers, one for each optional feature: what a driver offers is used only once it has been
//! right here. All values are small whole numbers and quarters, so every answer is exact in every type.

use half::f16;

use super::buffer::Download;
use super::pipeline::Trust;
use super::{Access, Command, Dispatch, GpuDevice, KernelSource, Optional, ParamSpace};
use crate::adapter::{CoopScalar, CoopShape};
use crate::error::Error;

/// Threads of every kernel here but the matrix one.
const THREADS: u32 = 64;

/// Words that a thread of the subgroup kernel writes.
const SUBGROUP_WORDS: usize = 8;

/// A kernel, what it is given and what it has to answer.
struct Sample {
    source: KernelSource,
    params: Vec<u32>,
    input: Vec<u8>,
    /// Bytes of the answer.
    size: usize,
    check: Box<dyn Fn(&[u8]) -> Result<(), String>>,
}

/// What came of a sample: what is wrong, if anything.
pub(super) type Verdict = Result<(), String>;

/// Runs the sample of what every kernel needs and those of `group`, in one submission; the verdict on the first, and those on
/// the others in order.
///
/// # Errors
/// Whatever keeps the device from answering at all; no verdict is known then.
pub(super) fn run(
    device: &GpuDevice,
    group: &[Optional],
) -> Result<(Verdict, Vec<Verdict>), Error> {
    let mut samples = vec![basics()];
    samples.extend(group.iter().map(|&feature| sample(feature, device)));
    let mut verdicts = Vec::with_capacity(samples.len());
    let mut ready = Vec::new();
    for (at, sample) in samples.iter().enumerate() {
        match device.pipeline(&sample.source) {
            Ok(pipeline) => {
                let input = device.allocate_with(&sample.input)?;
                let output = device.allocate(sample.size as u64)?;
                let bindings = device.bind(&pipeline, &[input.whole(), output.whole()])?;
                verdicts.push(Ok(()));
                ready.push((at, pipeline, bindings, output));
            }
            Err(Error::Shader { message, .. }) => verdicts.push(Err(message)),
            Err(other) => return Err(other),
        }
    }
    let commands: Vec<Command<'_>> = ready
        .iter()
        .map(|(at, pipeline, bindings, _)| {
            Command::Dispatch(Dispatch {
                pipeline,
                bindings,
                params: &samples[*at].params,
                groups: [1, 1, 1],
            })
        })
        .collect();
    device.submit(&commands)?;
    let mut answers: Vec<Vec<u8>> = ready
        .iter()
        .map(|(at, ..)| vec![0; samples[*at].size])
        .collect();
    let mut downloads: Vec<Download<'_>> = ready
        .iter()
        .zip(&mut answers)
        .map(|((.., output), target)| Download {
            buffer: output,
            offset: 0,
            target,
        })
        .collect();
    device.download_all(&mut downloads)?;
    for ((at, ..), answer) in ready.iter().zip(&answers) {
        verdicts[*at] = (samples[*at].check)(answer);
    }
    let others = verdicts.split_off(1);
    Ok((verdicts.into_iter().collect(), others))
}

fn sample(feature: Optional, device: &GpuDevice) -> Sample {
    match feature {
        Optional::F16 => halves(),
        Optional::Subgroups => subgroups(device.features().subgroups),
        Optional::Int64 => long_integers(),
        Optional::Immediates => immediates(device.features().immediate_size),
        Optional::Cooperative(shape) => matrices(shape),
    }
}

fn kernel(label: &str, text: String) -> KernelSource {
    KernelSource {
        label: format!("self-test of {label}"),
        text,
        bindings: vec![Access::Read, Access::ReadWrite],
        params_len: 0,
        params_in: ParamSpace::Uniform,
        trust: Trust::Foreign,
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// Compares word by word.
fn exactly(want: Vec<u32>) -> Box<dyn Fn(&[u8]) -> Verdict> {
    Box::new(move |bytes| {
        let got = words(bytes);
        match got.iter().zip(&want).position(|(got, want)| got != want) {
            Some(at) => Err(format!(
                "word {at} of the answer is {:#x}, should be {:#x}",
                got[at], want[at]
            )),
            None => Ok(()),
        }
    })
}

/// Storage, workgroup memory, barriers, atomics, loops and a uniform block: without these nothing runs.
fn basics() -> Sample {
    let text = format!(
        "struct Params {{ factor: u32 }}
        @group(0) @binding(0) var<storage, read> source: array<u32>;
        @group(0) @binding(1) var<storage, read_write> answer: array<u32>;
        @group(1) @binding(0) var<uniform> params: Params;
        var<workgroup> staged: array<u32, {THREADS}>;
        var<workgroup> count: atomic<u32>;
        @compute @workgroup_size({THREADS})
        fn main(@builtin(local_invocation_index) i: u32) {{
            staged[i] = source[i] * params.factor;
            atomicAdd(&count, i);
            workgroupBarrier();
            for (var step = {THREADS}u / 2u; step > 0u; step /= 2u) {{
                if i < step {{ staged[i] += staged[i + step]; }}
                workgroupBarrier();
            }}
            answer[i] = staged[0] + atomicLoad(&count) + i;
        }}"
    );
    let input: Vec<u32> = (0..THREADS).map(|i| i * i + 1).collect();
    let sum: u32 = input.iter().map(|x| 3 * x).sum();
    let count = THREADS * (THREADS - 1) / 2;
    Sample {
        source: KernelSource {
            params_len: 1,
            ..kernel("the basics", text)
        },
        params: vec![3],
        input: bytemuck::cast_slice(&input).to_vec(),
        size: 4 * THREADS as usize,
        check: exactly((0..THREADS).map(|i| sum + count + i).collect()),
    }
}

/// Fours of halves through storage and workgroup memory, arithmetic, comparison, conversion.
fn halves() -> Sample {
    let text = format!(
        "enable f16;
        @group(0) @binding(0) var<storage, read> source: array<vec4<f16>>;
        @group(0) @binding(1) var<storage, read_write> answer: array<f16>;
        var<workgroup> staged: array<vec4<f16>, {THREADS}>;
        @compute @workgroup_size({THREADS})
        fn main(@builtin(local_invocation_index) i: u32) {{
            let x = source[i];
            staged[i] = x.wzyx;
            workgroupBarrier();
            let y = staged[{THREADS}u - 1u - i];
            answer[4u * i] = fma(x.x, y.x, x.y);
            answer[4u * i + 1u] = max(x.z, y.z) - min(x.y, 2.0h);
            answer[4u * i + 2u] = f16(f32(x.w) * 0.25 + dot(vec4<f32>(x), vec4<f32>(y)));
            answer[4u * i + 3u] = select(-y.y, y.y * 0.5h, x.x < y.w);
        }}"
    );
    let number = |at: u32| ((at * 7 + 3) % 17) as f32 - 8.0;
    let of = |thread: u32| [0, 1, 2, 3].map(|c| number(4 * thread + c));
    let values: Vec<f16> = (0..4 * THREADS)
        .map(|at| f16::from_f32(number(at)))
        .collect();
    let answer = |thread: u32| {
        let x = of(thread);
        let mut y = of(THREADS - 1 - thread);
        y.reverse();
        let product: f32 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
        let chosen = if x[0] < y[3] { y[1] * 0.5 } else { -y[1] };
        [
            x[0] * y[0] + x[1],
            x[2].max(y[2]) - x[1].min(2.0),
            x[3] * 0.25 + product,
            chosen,
        ]
    };
    let want: Vec<f16> = (0..THREADS).flat_map(answer).map(f16::from_f32).collect();
    Sample {
        source: kernel("f16", text),
        params: Vec::new(),
        input: bytemuck::cast_slice(&values).to_vec(),
        size: 2 * want.len(),
        check: exactly(words(bytemuck::cast_slice(&want))),
    }
}

/// Every subgroup operation that kernels use, on subgroups of whatever size the driver chose.
fn subgroups(sizes: Option<(u32, u32)>) -> Sample {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> source: array<u32>;
        @group(0) @binding(1) var<storage, read_write> answer: array<u32>;
        @compute @workgroup_size({THREADS})
        fn main(@builtin(local_invocation_index) i: u32, @builtin(subgroup_size) size: u32,
                @builtin(subgroup_invocation_id) lane: u32) {{
            let x = source[i];
            let at = i * {SUBGROUP_WORDS}u;
            answer[at] = size;
            answer[at + 1u] = lane;
            answer[at + 2u] = subgroupBroadcastFirst(i);
            answer[at + 3u] = subgroupAdd(x);
            answer[at + 4u] = subgroupMax(x);
            answer[at + 5u] = subgroupExclusiveAdd(x);
            answer[at + 6u] = subgroupShuffleXor(i, 1u);
            answer[at + 7u] = bitcast<u32>(subgroupAdd(f32(x) * 0.5));
        }}"
    );
    let input: Vec<u32> = (0..THREADS).map(|i| (i * 37 + 11) % 101).collect();
    let given = input.clone();
    Sample {
        source: kernel("subgroups", text),
        params: Vec::new(),
        input: bytemuck::cast_slice(&input).to_vec(),
        size: 4 * SUBGROUP_WORDS * THREADS as usize,
        check: Box::new(move |bytes| check_subgroups(&given, &words(bytes), sizes)),
    }
}

/// Which threads share a subgroup is the driver's choice, so the answers are held against the subgroups they tell of.
fn check_subgroups(input: &[u32], answer: &[u32], sizes: Option<(u32, u32)>) -> Verdict {
    let row = |thread: usize| &answer[thread * SUBGROUP_WORDS..][..SUBGROUP_WORDS];
    for thread in 0..input.len() {
        let mine = row(thread);
        let (size, lane) = (mine[0], mine[1]);
        let mut members: Vec<usize> = (0..input.len()).filter(|&t| row(t)[2] == mine[2]).collect();
        members.sort_by_key(|&t| row(t)[1]);
        let in_bounds = sizes.is_none_or(|(least, most)| (least..=most).contains(&size));
        let distinct = members
            .windows(2)
            .all(|two| row(two[0])[1] < row(two[1])[1]);
        let one_size = members.iter().all(|&t| row(t)[0] == size);
        if !in_bounds || !one_size || !distinct || members.len() > size as usize || lane >= size {
            return Err(format!(
                "thread {thread} is lane {lane} of {} threads in a subgroup of {size}",
                members.len()
            ));
        }
        let values = || members.iter().map(|&t| input[t]);
        let before = members.iter().take_while(|&&t| t != thread);
        let halves: f32 = values().map(|x| x as f32 * 0.5).sum();
        let other = members.iter().find(|&&t| row(t)[1] == lane ^ 1);
        let want = [
            ("sum", values().sum()),
            ("maximum", values().max().unwrap_or(0)),
            ("exclusive sum", before.map(|&t| input[t]).sum()),
            ("shuffle", other.map_or(mine[6], |&t| t as u32)),
            ("sum of floats", halves.to_bits()),
        ];
        for ((what, want), got) in want.into_iter().zip(&mine[3..]) {
            if *got != want {
                return Err(format!(
                    "the {what} of a subgroup of {size} is {got:#x}, should be {want:#x}"
                ));
            }
        }
    }
    Ok(())
}

/// 64-bit products, sums, shifts and comparisons.
fn long_integers() -> Sample {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> source: array<vec2<u32>>;
        @group(0) @binding(1) var<storage, read_write> answer: array<vec2<u32>>;
        fn long(words: vec2<u32>) -> u64 {{ return (u64(words.y) << 32u) | u64(words.x); }}
        fn short(x: u64) -> vec2<u32> {{ return vec2<u32>(u32(x & 0xfffffffflu), u32(x >> 32u)); }}
        @compute @workgroup_size({THREADS})
        fn main(@builtin(local_invocation_index) i: u32) {{
            let x = long(source[i]);
            let y = long(source[{THREADS}u - 1u - i]);
            let sign = select(0lu, 1lu, i64(x) < i64(y));
            answer[2u * i] = short(x * y + sign);
            answer[2u * i + 1u] = short((x >> (i & 63u)) ^ (y << (i & 31u)));
        }}"
    );
    let number =
        |at: u32| u64::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(at) << 60);
    let input: Vec<u64> = (0..THREADS).map(number).collect();
    let answer = |i: u32| {
        let (x, y) = (number(i), number(THREADS - 1 - i));
        let sign = u64::from((x as i64) < y as i64);
        [
            x.wrapping_mul(y).wrapping_add(sign),
            (x >> (i & 63)) ^ (y << (i & 31)),
        ]
    };
    let want: Vec<u64> = (0..THREADS).flat_map(answer).collect();
    Sample {
        source: kernel("64-bit integers", text),
        params: Vec::new(),
        input: bytemuck::cast_slice(&input).to_vec(),
        size: 8 * want.len(),
        check: exactly(words(bytemuck::cast_slice(&want))),
    }
}

/// Every word that fits a command arrives.
fn immediates(size: u32) -> Sample {
    let vectors = (size / 16).max(1);
    let text = format!(
        "struct Params {{ words: array<vec4<u32>, {vectors}> }}
        @group(0) @binding(0) var<storage, read> source: array<u32>;
        @group(0) @binding(1) var<storage, read_write> answer: array<u32>;
        var<immediate> params: Params;
        @compute @workgroup_size({THREADS})
        fn main(@builtin(local_invocation_index) i: u32) {{
            for (var at = i; at < {vectors}u * 4u; at += {THREADS}u) {{
                answer[at] = params.words[at / 4u][at % 4u] + source[0];
            }}
        }}"
    );
    let params: Vec<u32> = (0..4 * vectors).map(|i| i * i + 7).collect();
    let want: Vec<u32> = params.iter().map(|word| word + 5).collect();
    Sample {
        source: KernelSource {
            params_len: params.len() as u32,
            params_in: ParamSpace::Immediate,
            ..kernel("immediates", text)
        },
        size: 4 * want.len(),
        params,
        input: 5u32.to_le_bytes().to_vec(),
        check: exactly(want),
    }
}

/// `C + A B + A B`: operands once from storage and once from padded rows in workgroup memory. Each operand and the
/// accumulator lie in one buffer, as the type of the result where that holds the operands' too.
fn matrices(shape: CoopShape) -> Sample {
    let (n, operand, result) = (shape.rows, shape.operand.name(), shape.result.name());
    let enable = match (shape.operand, shape.result) {
        (CoopScalar::F16, _) | (_, CoopScalar::F16) => "enable f16;",
        _ => "",
    };
    let (square, row) = (n * n, n + 8);
    let padded = n * row;
    let text = format!(
        "{enable} enable wgpu_cooperative_matrix;
        @group(0) @binding(0) var<storage, read> source: array<{operand}>;
        @group(0) @binding(1) var<storage, read_write> answer: array<{result}>;
        var<workgroup> lhs: array<{operand}, {padded}>;
        var<workgroup> rhs: array<{operand}, {padded}>;
        var<workgroup> sum: array<{result}, {square}>;
        @compute @workgroup_size({COOP_THREADS})
        fn main(@builtin(local_invocation_index) i: u32) {{
            for (var t = i; t < {square}u; t += {COOP_THREADS}u) {{
                lhs[t / {n}u * {row}u + t % {n}u] = source[t];
                rhs[t / {n}u * {row}u + t % {n}u] = source[{square}u + t];
                sum[t] = {result}(source[2u * {square}u + t]);
            }}
            workgroupBarrier();
            var c = coopLoadT<coop_mat{n}x{n}<{result}, C>>(&sum[0], {n}u);
            let a = coopLoadT<coop_mat{n}x{n}<{operand}, A>>(&source[0], {n}u);
            let b = coopLoadT<coop_mat{n}x{n}<{operand}, B>>(&source[{square}u], {n}u);
            c = coopMultiplyAdd(a, b, c);
            let staged_a = coopLoadT<coop_mat{n}x{n}<{operand}, A>>(&lhs[0], {row}u);
            let staged_b = coopLoadT<coop_mat{n}x{n}<{operand}, B>>(&rhs[0], {row}u);
            c = coopMultiplyAdd(staged_a, staged_b, c);
            coopStoreT(c, &answer[0], {n}u);
        }}"
    );
    let values: Vec<f32> = (0..3 * square)
        .map(|at| ((at * 7 + at / square * 5 + 3) % 5) as f32 - 2.0)
        .collect();
    let value = |part: u32, row: u32, col: u32| values[(part * square + row * n + col) as usize];
    let want: Vec<f32> = (0..square)
        .map(|at| (at / n, at % n))
        .map(|(row, col)| {
            let product: f32 = (0..n).map(|k| value(0, row, k) * value(1, k, col)).sum();
            value(2, row, col) + 2.0 * product
        })
        .collect();
    let want = stored(&want, shape.result);
    Sample {
        source: kernel("cooperative matrices", text),
        params: Vec::new(),
        input: stored(&values, shape.operand),
        size: want.len(),
        check: exactly(words(&want)),
    }
}

/// Threads of the matrix kernel: one subgroup of the largest size there is, or several that compute the same.
const COOP_THREADS: u32 = 128;

/// Numbers as a matrix unit's type stores them.
fn stored(values: &[f32], scalar: CoopScalar) -> Vec<u8> {
    let each = values.iter();
    match scalar {
        CoopScalar::F32 => bytemuck::cast_slice(values).to_vec(),
        CoopScalar::F16 => each.flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        CoopScalar::I32 => each.flat_map(|&v| (v as i32).to_le_bytes()).collect(),
        CoopScalar::U32 => each
            .flat_map(|&v| (v as i32 as u32).to_le_bytes())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_basics_need_no_optional_feature() {
        let checked = cupola_shaders::check::check_wgsl(&basics().source.text);
        assert!(checked.is_ok(), "{:?}", checked.err());
    }

    #[test]
    fn subgroups_are_judged_by_what_they_tell() {
        let input: Vec<u32> = (0..THREADS).map(|i| i % 5 + 1).collect();
        let answers = |size: u32| -> Vec<u32> {
            (0..THREADS)
                .flat_map(|i| {
                    let first = i / size * size;
                    let members = first..first + size;
                    let sum: u32 = members.clone().map(|t| input[t as usize]).sum();
                    let most = members.map(|t| input[t as usize]).max().expect("members");
                    let before: u32 = (first..i).map(|t| input[t as usize]).sum();
                    let float = (sum as f32 * 0.5).to_bits();
                    [size, i - first, first, sum, most, before, i ^ 1, float]
                })
                .collect()
        };
        for size in [4, 8, 16, 32, 64] {
            assert_eq!(
                check_subgroups(&input, &answers(size), Some((4, 64))),
                Ok(())
            );
            assert!(check_subgroups(&input, &answers(size), Some((128, 128))).is_err());
            for word in 0..SUBGROUP_WORDS {
                let mut wrong = answers(size);
                wrong[5 * SUBGROUP_WORDS + word] += 1;
                let verdict = check_subgroups(&input, &wrong, Some((4, 64)));
                assert!(verdict.is_err(), "word {word} of subgroups of {size}");
            }
        }
    }
}
