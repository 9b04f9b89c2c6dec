//! The ladder of kernels under criterion: `cargo bench -p cupola-benches [-- FILTER]`.

use criterion::{Criterion, Throughput};
use cupola::Host;
use cupola_benches::ladder;

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let host = Host::new();
    let mut rates = None;
    for case in ladder()? {
        let (mut session, inputs) = case.session(&host, 0)?;
        rates = rates.or_else(|| session.program().measure());
        if let Some(rates) = &rates {
            let limit = case.limit(rates).as_secs_f64() * 1e6;
            println!("{}: the limit of this machine is {limit:.1} us", case.name);
        }
        let mut group = criterion.benchmark_group("kernels");
        group.throughput(Throughput::Elements(case.flops as u64));
        group.bench_function(&case.name, |b| {
            b.iter(|| session.run(inputs.clone()).map(|outputs| outputs.len()));
        });
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
