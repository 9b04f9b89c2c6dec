//! Kernels that do one thing as fast as a device can: copies, multiply-adds, products of matrix units. What they reach is
//! what other kernels are compared with.
//!
//! All take `source` to read and `sink` to write, and the parameters [`PeakParams`].

use std::fmt::Write as _;

use crate::shader::params;
use crate::template::fill;

/// Threads of a workgroup of every kernel here.
pub const THREADS: u32 = 256;

/// Chains of multiply-adds of a thread (vectors of four), or of products of a subgroup: enough to hide the latency of any
/// known arithmetic unit.
pub const CHAINS: u32 = 8;

/// Links of each chain in a round of the loop.
pub const UNROLL: u32 = 8;

params! {
    /// Parameters of the kernels of this module.
    PeakParams {
        /// Vectors to copy, threads that store, or matrices that are stored to.
        len,
        /// Rounds of the loop.
        rounds,
        /// Bits of an `f32`.
        factor,
        /// Bits of an `f32`.
        addend,
    }
}

/// Number type of multiply-adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, an optional feature.
    F16,
}

/// What a kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peak {
    /// Copies so many vectors of 16 bytes a thread.
    Copy {
        /// Vectors of a thread.
        each: u32,
    },
    /// Multiply-adds.
    MultiplyAdd(Number),
    /// Products of f16 summed in f32 in matrix units, an optional feature.
    Matrix {
        /// Rows, columns and inner length: 8 or 16.
        side: u32,
    },
}

impl Peak {
    /// Operations of a workgroup in one round, a multiply-add counted as two; `subgroups` in a workgroup.
    pub fn operations(self, subgroups: u32) -> f64 {
        let links = f64::from(2 * CHAINS * UNROLL);
        match self {
            Self::Copy { .. } => 0.0,
            Self::MultiplyAdd(_) => links * f64::from(4 * THREADS),
            Self::Matrix { side } => links * f64::from(side.pow(3) * subgroups),
        }
    }

    /// The text of the kernel. Parameters are in a uniform buffer.
    pub fn wgsl(self) -> String {
        let enables = match self {
            Self::MultiplyAdd(Number::F16) => "enable f16;\n",
            Self::Matrix { .. } => "enable f16;\nenable wgpu_cooperative_matrix;\n",
            Self::Copy { .. } | Self::MultiplyAdd(Number::F32) => "",
        };
        let body = match self {
            Self::Copy { each } => copy(each),
            Self::MultiplyAdd(number) => multiply_add(number),
            Self::Matrix { side } => matrix(side),
        };
        format!(
            "{enables}struct Params {{ len: u32, rounds: u32, factor: u32, addend: u32 }}\n\
             @group(1) @binding(0) var<uniform> params: Params;\n{body}"
        )
    }
}

fn copy(each: u32) -> String {
    let mut copies = String::new();
    for n in 0..each {
        let _ = writeln!(
            copies,
            "    if first + {at}u < params.len {{ sink[first + {at}u] = source[first + {at}u]; }}",
            at = n * THREADS
        );
    }
    fill(
        include_str!("../wgsl/peak_copy.wgsl"),
        &[
            ("EACH", &each.to_string()),
            ("THREADS", &THREADS.to_string()),
            ("SPAN", &(each * THREADS).to_string()),
            ("COPIES", &copies),
        ],
    )
}

/// What all chains come to.
fn sum_of_chains() -> String {
    let sums: Vec<String> = (0..CHAINS).map(|chain| format!("sum_{chain}")).collect();
    sums.join(" + ")
}

fn multiply_add(number: Number) -> String {
    let value = match number {
        Number::F32 => "f32",
        Number::F16 => "f16",
    };
    let mut setup = String::new();
    for chain in 0..CHAINS {
        let _ = writeln!(
            setup,
            "    var sum_{chain} = vec4<{value}>({value}(local + {chain}u));"
        );
    }
    let mut links = String::new();
    for _ in 0..UNROLL {
        for chain in 0..CHAINS {
            let _ = writeln!(
                links,
                "        sum_{chain} = fma(sum_{chain}, factor, addend);"
            );
        }
    }
    fill(
        include_str!("../wgsl/peak_multiply_add.wgsl"),
        &[
            ("CHAINS", &CHAINS.to_string()),
            ("UNROLL", &UNROLL.to_string()),
            ("THREADS", &THREADS.to_string()),
            ("V", value),
            ("SETUP", &setup),
            ("LINKS", &links),
            ("SUM", &sum_of_chains()),
        ],
    )
}

fn matrix(side: u32) -> String {
    let (mut setup, mut loads) = (String::new(), String::new());
    for chain in 0..CHAINS {
        let _ = writeln!(
            setup,
            "    let right_{chain} = coopLoadT<coop_mat{side}x{side}<f16, B>>(&source[{}], {side}u);
    var sum_{chain} = coop_mat{side}x{side}<f32, C>();",
            (chain + 2) * side * side
        );
    }
    let mut links = String::new();
    for link in 0..UNROLL {
        let _ = writeln!(
            loads,
            "        let left_{link} = coopLoadT<coop_mat{side}x{side}<f16, A>>(&source[((round + {link}u) & 1u) * {}u + {}u], {side}u);",
            side * side,
            link * side
        );
        for chain in 0..CHAINS {
            let _ = writeln!(
                links,
                "        sum_{chain} = coopMultiplyAdd(left_{link}, right_{}, sum_{chain});",
                (chain + link) % CHAINS
            );
        }
    }
    fill(
        include_str!("../wgsl/peak_matrix.wgsl"),
        &[
            ("CHAINS", &CHAINS.to_string()),
            ("SIDE", &side.to_string()),
            ("SQUARE", &(side * side).to_string()),
            ("THREADS", &THREADS.to_string()),
            ("SETUP", &setup),
            ("LINKS", &(loads + &links)),
            ("SUM", &sum_of_chains()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::{Number, Peak};
    use crate::check::{check_wgsl, check_wgsl_with};
    use naga::valid::Capabilities;

    #[test]
    fn every_interface_takes_what_needs_no_feature() {
        for peak in [
            Peak::Copy { each: 1 },
            Peak::Copy { each: 4 },
            Peak::MultiplyAdd(Number::F32),
        ] {
            check_wgsl(&peak.wgsl()).unwrap_or_else(|error| panic!("{peak:?}: {error}"));
        }
        let half = Peak::MultiplyAdd(Number::F16).wgsl();
        check_wgsl_with(&half, Capabilities::SHADER_FLOAT16).expect("f16 in every interface");
    }

    #[test]
    fn operations_are_counted() {
        // 8 chains of 8 links on vectors of four in 256 threads.
        assert_eq!(
            Peak::MultiplyAdd(Number::F32).operations(8),
            2.0 * 64.0 * 1024.0
        );
        assert_eq!(
            Peak::Matrix { side: 16 }.operations(8),
            2.0 * 64.0 * 4096.0 * 8.0
        );
    }
}
