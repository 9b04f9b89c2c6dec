//! What the processor can do: vector level, extensions and cache sizes.
//!
//! An [`Isa`] is a proof: it can only be made for features that the running processor has, so code that was selected by it may
//! execute those instructions. `CUPOLA_CPU=x86-64-v2|x86-64-v3|x86-64-v4|native` lowers the level, for tests and measurements.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Vector instruction family that the library kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Baseline of the compilation target (SSE2 on x86-64, NEON on aarch64), vectorised by the compiler.
    Baseline,
    /// x86-64-v3: AVX2, FMA, F16C; 256-bit vectors.
    Avx2,
    /// x86-64-v4: AVX-512 F, BW, CD, DQ, VL; 512-bit vectors with masks.
    Avx512,
}

/// A vector level with extensions that the running processor is known to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa {
    level: Level,
    vnni: bool,
    bf16: bool,
}

/// Data cache sizes in bytes, as one core sees them (L3 is shared).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// First-level data cache.
    pub l1: usize,
    /// Second-level cache.
    pub l2: usize,
    /// Last-level cache; equals `l2` where there is none.
    pub l3: usize,
}

impl Isa {
    /// The best the running processor has.
    pub fn detect() -> Isa {
        let level = detect_level();
        let wide = level == Level::Avx512;
        Isa {
            level,
            vnni: wide && has_vnni(),
            bf16: wide && has_bf16(),
        }
    }

    /// The baseline of the compilation target.
    pub const fn baseline() -> Isa {
        Isa {
            level: Level::Baseline,
            vnni: false,
            bf16: false,
        }
    }

    /// The level of that name. `native` is [`Isa::detect`]; the numbered levels exclude extensions (VNNI, BF16) that they do
    /// not imply. `x86-64-v2` means the baseline. Error: unknown name, or a level above that of this processor.
    pub fn named(name: &str) -> Result<Isa> {
        let level = match name {
            "native" | "" => return Ok(Isa::detect()),
            "x86-64-v2" => Level::Baseline,
            "x86-64-v3" => Level::Avx2,
            "x86-64-v4" => Level::Avx512,
            _ => {
                return Err(Error::CpuLevel {
                    name: name.to_owned(),
                    reason: "no such level",
                });
            }
        };
        if !cfg!(target_arch = "x86_64") || level > detect_level() {
            return Err(Error::CpuLevel {
                name: name.to_owned(),
                reason: "this processor does not have that level",
            });
        }
        Ok(Isa {
            level,
            vnni: false,
            bf16: false,
        })
    }

    /// The level that the environment asks for by `CUPOLA_CPU`, else the best one. Read once per process.
    pub fn from_environment() -> Result<Isa> {
        static CHOSEN: OnceLock<Result<Isa>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var("CUPOLA_CPU") {
                Ok(name) => Isa::named(&name),
                Err(_) => Ok(Isa::detect()),
            })
            .clone()
    }

    /// Every distinct level this processor can run, lowest first, the best one last: what tests iterate over.
    pub fn available() -> Vec<Isa> {
        let best = Isa::detect();
        let mut all: Vec<Isa> = [Level::Baseline, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|&level| level <= best.level)
            .map(|level| Isa {
                level,
                vnni: false,
                bf16: false,
            })
            .collect();
        if all.last() != Some(&best) {
            all.push(best);
        }
        all
    }

    /// A level below, where it has to be another's code, without extensions.
    pub fn at_most(self, level: Level) -> Isa {
        Isa {
            level: self.level.min(level),
            vnni: false,
            bf16: false,
        }
    }

    /// The vector family.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Whether `vpdpbusd` on 512 bits exists (AVX512-VNNI).
    pub const fn vnni(self) -> bool {
        self.vnni
    }

    /// Whether `vdpbf16ps` on 512 bits exists (AVX512-BF16).
    pub const fn bf16(self) -> bool {
        self.bf16
    }
}

#[cfg(target_arch = "x86_64")]
fn detect_level() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Baseline,
    }
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_level() -> Level {
    Level::Baseline
}

#[cfg(not(target_arch = "x86_64"))]
fn has_vnni() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

/// Cache sizes of the running processor; common sizes (32 KiB, 512 KiB, 8 MiB) where it does not tell.
pub fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| {
        let mut sizes = [32 << 10, 512 << 10, 0];
        for (level, size) in cache_descriptions() {
            if let Some(slot) = sizes.get_mut(level.wrapping_sub(1)) {
                *slot = size;
            }
        }
        let [l1, l2, l3] = sizes;
        Caches {
            l1,
            l2,
            l3: if l3 == 0 { l2.max(8 << 20) } else { l3 },
        }
    })
}

/// Cores that the process may use, counting the threads of one core once where the system tells; at least 1.
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    let groups: std::collections::BTreeSet<String> = (0..4096).map_while(siblings).collect();
    if groups.is_empty() {
        allowed
    } else {
        groups.len().min(allowed)
    }
}

/// (level, bytes) of every data or unified cache, from the deterministic cache parameters leaf (4 on Intel, 8000_001D on AMD).
#[cfg(target_arch = "x86_64")]
fn cache_descriptions() -> Vec<(usize, usize)> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let best_extended = __cpuid(0x8000_0000).eax;
    let topology_extensions =
        best_extended >= 0x8000_001D && __cpuid(0x8000_0001).ecx & (1 << 22) != 0;
    let leaf = match (topology_extensions, __cpuid(0).eax >= 4) {
        (true, _) => 0x8000_001D,
        (false, true) => 4,
        (false, false) => return Vec::new(),
    };
    let mut found = Vec::new();
    for index in 0..16 {
        let answer = __cpuid_count(leaf, index);
        let kind = answer.eax & 31;
        if kind == 0 {
            break;
        }
        const INSTRUCTIONS: u32 = 2;
        if kind != INSTRUCTIONS {
            let ways = (answer.ebx >> 22) as usize + 1;
            let partitions = (answer.ebx >> 12 & 0x3FF) as usize + 1;
            let line = (answer.ebx & 0xFFF) as usize + 1;
            let sets = answer.ecx as usize + 1;
            found.push((
                (answer.eax >> 5 & 7) as usize,
                ways * partitions * line * sets,
            ));
        }
    }
    found
}

/// (level, bytes) of every data or unified cache, from Linux's description of the first core.
#[cfg(not(target_arch = "x86_64"))]
fn cache_descriptions() -> Vec<(usize, usize)> {
    let read = |index: usize, file: &str| {
        std::fs::read_to_string(format!(
            "/sys/devices/system/cpu/cpu0/cache/index{index}/{file}"
        ))
        .ok()
    };
    let describe = |index: usize| {
        if read(index, "type")?.trim() == "Instruction" {
            return None;
        }
        let level = read(index, "level")?.trim().parse().ok()?;
        let kibibytes: usize = read(index, "size")?
            .trim()
            .strip_suffix('K')?
            .parse()
            .ok()?;
        Some((level, kibibytes << 10))
    };
    (0..8).filter_map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_end_with_the_best() {
        let all = Isa::available();
        assert_eq!(all.first(), Some(&Isa::baseline()));
        assert_eq!(all.last(), Some(&Isa::detect()));
        assert!(all.windows(2).all(|pair| pair[0].level <= pair[1].level));
    }

    #[test]
    fn names() {
        assert_eq!(Isa::named("native"), Ok(Isa::detect()));
        let error = Isa::named("pentium").expect_err("no such level");
        assert!(error.to_string().contains("pentium"));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(Isa::named("x86-64-v2"), Ok(Isa::baseline()));
        }
        assert!(
            Isa::named("x86-64-v4").is_ok_and(|isa| !isa.vnni())
                || Isa::detect().level() < Level::Avx512
        );
    }

    #[test]
    fn cache_sizes_grow_outwards() {
        let caches = caches();
        assert!(physical_cores() >= 1);
        assert!(
            caches.l1 >= 8 << 10 && caches.l1 <= caches.l2 && caches.l2 <= caches.l3,
            "{caches:?}"
        );
    }
}
