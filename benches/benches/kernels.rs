//! Kernels of the benchmark suite under criterion, on the CPU: `cargo bench -p cupola-benches [-- FILTER]`.

use criterion::{Criterion, Throughput};
use cupola::Host;
use cupola::suite::{Group, cases};
use cupola_benches::Ready;

/// Cases of more operations, or a tenth of that in bytes, are too slow to be run a hundred times.
const LARGEST: f64 = 3e9;

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let host = Host::new();
    let kernels = cases().into_iter().filter(|c| c.group != Group::Model);
    for case in kernels.filter(|c| c.flops.max(10.0 * c.bytes) <= LARGEST) {
        let mut group = criterion.benchmark_group(case.group.name());
        group.throughput(Throughput::Bytes(case.bytes as u64));
        // Built only if the filter lets it run.
        let mut ready = None;
        group.bench_function(&case.name, |b| {
            let ready =
                ready.get_or_insert_with(|| Ready::new(&case, &host).expect("every case compiles"));
            b.iter(|| ready.run().expect("every case runs"));
        });
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
