//! Cost of an empty parallel region: `cargo run --release -p cupola-cpu --example pool_overhead [THREADS]`.

use std::time::{Duration, Instant};

use cupola_cpu::threads::Pool;

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

fn main() {
    let threads = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let pool = Pool::new(threads);
    let region = |pause: Duration| {
        std::thread::sleep(pause);
        let begin = Instant::now();
        pool.run(threads, |chunk| {
            std::hint::black_box(chunk);
        });
        begin.elapsed()
    };
    let hot = median((0..100_000).map(|_| region(Duration::ZERO)).collect());
    let parked = median((0..200).map(|_| region(Duration::from_millis(2))).collect());
    println!("{threads} threads: empty region {hot:?} hot, {parked:?} after 2 ms of idleness");
}
