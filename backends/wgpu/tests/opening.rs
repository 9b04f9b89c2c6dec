//! Opening a device: features that do not work are not used, what was found out is kept; and drivers that fail.

mod common;

use common::Kept;
use cupola_shaders::{Access, ParamSpace};
use cupola_wgpu::adapter::Adapter;
use cupola_wgpu::device::pipeline::Trust;
use cupola_wgpu::device::{Command, Dispatch, Injected, KernelSource, Mishap};
use cupola_wgpu::{AdapterList, Attempt, Cut, DeviceOptions, Error, GpuDevice, Prober, Tier};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The first adapter, if it offers cooperative matrices; the text that trying it out gives without them.
fn risky_adapter() -> Option<(Adapter, String)> {
    let list = AdapterList::enumerate();
    let adapter = list.adapters().first().cloned();
    if adapter.is_none() {
        assert!(common::device(Tier::Base).is_none());
    }
    let adapter = adapter.filter(|a| !a.facts().features.cooperative.is_empty())?;
    let keeper = Arc::new(Kept::default());
    let options = DeviceOptions {
        tier: Tier::Full,
        keeper: Some(keeper.clone()),
        ..DeviceOptions::default()
    };
    GpuDevice::open(&adapter, &options).expect("the adapter opens");
    let pieces = keeper.0.lock().expect("pieces");
    let text = pieces.values().find(|b| b.starts_with(b"cupola gpu"))?;
    let text = String::from_utf8(text.to_vec()).expect("text");
    Some((adapter, text))
}

/// Answers as it was told to, and counts how often it was asked.
#[derive(Debug)]
struct Answer {
    answer: Result<Attempt, String>,
    asked: AtomicUsize,
}

impl Prober for Answer {
    fn probe(&self, _adapter: usize) -> Result<Attempt, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.answer.clone()
    }
}

fn answer(text: &str, cut: Option<Cut>) -> Arc<Answer> {
    let text = text.to_owned();
    Arc::new(Answer {
        answer: Ok(Attempt { text, cut }),
        asked: AtomicUsize::new(0),
    })
}

fn options(prober: &Arc<Answer>, keeper: &Arc<Kept>) -> DeviceOptions {
    DeviceOptions {
        prober: Some(prober.clone()),
        keeper: Some(keeper.clone()),
        ..DeviceOptions::default()
    }
}

#[test]
fn what_crashes_elsewhere_is_not_used_here() {
    let Some((adapter, safe)) = risky_adapter() else {
        return;
    };
    let crashed = || Some(Cut::Ended("by signal 11".to_owned()));
    let slow = Some(Cut::Slow(Duration::from_secs(30)));
    let garbage = "cupola gpu findings 1\nanother adapter\nend\n";
    for (text, cut, features, said) in [
        (&*safe, crashed(), true, "signal 11"),
        (&safe[..safe.len() / 2], crashed(), false, "signal 11"),
        ("", slow, false, "no answer within 30 s"),
        (garbage, None, true, "said nothing"),
    ] {
        let prober = answer(text, cut.clone());
        let keeper = Arc::new(Kept::default());
        let device = GpuDevice::open(&adapter, &options(&prober, &keeper)).expect("opens");
        assert_eq!(device.tier(), Tier::Full);
        assert!(device.features().cooperative.is_empty());
        assert_eq!(device.features().f16, features, "{text}");
        let dropped = &device.findings().dropped;
        assert!(!dropped.is_empty());
        assert!(
            dropped.iter().all(|(_, why)| why.contains(said)),
            "{dropped:?}"
        );
        // A crash is remembered, a slow moment is not.
        let again = GpuDevice::open(&adapter, &options(&prober, &keeper)).expect("opens");
        assert_eq!(again.findings(), device.findings());
        let lasting = matches!(cut, Some(Cut::Ended(_)));
        let asked = prober.asked.load(Ordering::Relaxed);
        assert_eq!(asked, if lasting { 1 } else { 2 }, "{text}");
    }
}

#[test]
fn what_works_elsewhere_is_used_and_remembered() {
    let Some((adapter, safe)) = risky_adapter() else {
        return;
    };
    // As if the matrices were wrong: the answer of a whole attempt.
    let shapes = &adapter.facts().features.cooperative;
    let mut all = safe.trim_end().trim_end_matches("end").to_owned();
    for shape in shapes.iter().filter(|shape| shape.in_wgsl()) {
        all.push_str(&format!(
            "no cooperative matrices {shape}: word 3 is wrong\n"
        ));
    }
    let prober = answer(&format!("{safe}{all}end\n"), None);
    let keeper = Arc::new(Kept::default());
    for _ in 0..2 {
        let device = GpuDevice::open(&adapter, &options(&prober, &keeper)).expect("opens");
        let dropped = &device.findings().dropped;
        assert!(dropped.iter().all(|(_, why)| why == "word 3 is wrong"));
        assert_eq!(prober.asked.load(Ordering::Relaxed), 1);
    }
    // Without anybody to try it, a software adapter does without.
    let device = GpuDevice::open(&adapter, &DeviceOptions::default()).expect("opens");
    assert!(
        device.features().cooperative.is_empty()
            || !adapter.facts().kind.name().contains("software")
    );
}

fn doubling() -> KernelSource {
    KernelSource {
        label: "doubling".to_owned(),
        text: "@group(0) @binding(0) var<storage, read_write> x: array<u32>;
            @compute @workgroup_size(1) fn main() { x[0] = x[0] * 2u; }"
            .to_owned(),
        bindings: vec![Access::ReadWrite],
        params_len: 0,
        params_in: ParamSpace::Uniform,
        trust: Trust::Foreign,
    }
}

/// Doubles a number on the device.
fn double(device: &GpuDevice) -> Result<u32, Error> {
    let buffer = device.allocate_with(&21u32.to_le_bytes())?;
    let pipeline = device.pipeline(&doubling())?;
    let bindings = device.bind(&pipeline, &[buffer.whole()])?;
    device.submit(&[Command::Dispatch(Dispatch {
        pipeline: &pipeline,
        bindings: &bindings,
        params: &[],
        groups: [1, 1, 1],
    })])?;
    let mut word = [0; 4];
    device.download(&buffer, 0, &mut word)?;
    Ok(u32::from_le_bytes(word))
}

#[test]
fn a_failing_driver_gives_one_error() {
    for (what, said) in [
        (Mishap::Allocation, "out of device memory"),
        (Mishap::Pipeline, "does not compile"),
        (Mishap::Map, "download refused"),
        (Mishap::Submission, "was lost"),
    ] {
        let options = DeviceOptions {
            tier: Tier::Full,
            inject: Some(Injected { what, at: 1 }),
            ..DeviceOptions::default()
        };
        let Some(device) = common::open(&options) else {
            return;
        };
        let error = double(&device).expect_err("it was ordered").to_string();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains('\n'));
        let lost = what == Mishap::Submission;
        assert_eq!(device.is_lost(), lost);
        match double(&device) {
            Ok(doubled) => assert!(doubled == 42 && !lost),
            Err(error) => assert!(matches!(error, Error::Lost { .. }) && lost, "{error}"),
        }
        assert_eq!(device.memory().buffers, 0);
        // The same adapter, opened again beside it, knows nothing of that.
        let other = common::device(Tier::Full).expect("opens again");
        assert_eq!(double(&other), Ok(42));
    }
}

#[test]
fn compiled_kernels_are_kept_and_bindings_follow_their_buffers() {
    let keeper = Arc::new(Kept::default());
    let options = DeviceOptions {
        tier: Tier::Full,
        keeper: Some(keeper.clone()),
        ..DeviceOptions::default()
    };
    for round in 0..2 {
        let Some(device) = common::open(&options) else {
            return;
        };
        for _ in 0..3 {
            // Buffers of the same size come and go; each is bound anew.
            assert_eq!(double(&device), Ok(42), "round {round}");
        }
        let able = device.facts().features.pipeline_cache;
        drop(device);
        // The findings, and what the driver made of the kernel.
        let pieces = keeper.0.lock().expect("pieces").len();
        assert_eq!(pieces, if able { 2 } else { 1 });
    }
}
