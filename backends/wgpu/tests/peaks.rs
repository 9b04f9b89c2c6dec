//! What a device is measured to reach.

mod common;

use cupola_backend::Backend as _;
use cupola_wgpu::choice::Origin;
use cupola_wgpu::peaks::measure;
use cupola_wgpu::{AdapterList, DeviceOptions, Tier, TuneOptions, Tuning, WgpuBackend};
use std::sync::Arc;

#[test]
fn every_figure_is_a_plausible_number() {
    for tier in [Tier::Base, Tier::Full, Tier::Experimental] {
        let Some(device) = common::device(tier) else {
            return;
        };
        let peaks = measure(&device).expect("measures");
        // From a tenth of what software adapters on one core reach to ten times what is sold today.
        assert!((1e8..1e14).contains(&peaks.copy), "{peaks:?}");
        assert!((1e8..1e16).contains(&peaks.f32), "{peaks:?}");
        assert!((1e-7..1.0).contains(&peaks.submit), "{peaks:?}");
        assert!((1e-9..0.1).contains(&peaks.dispatch), "{peaks:?}");
        assert_eq!(peaks.f16.is_some(), device.features().f16);
        let units = !device.features().cooperative.is_empty();
        let known = matches!(device.features().subgroups, Some((least, most)) if least == most);
        assert_eq!(peaks.matrix.is_some(), units && known, "{peaks:?}");
        device.learn(peaks.rates(device.model().rates));
        assert_eq!(device.model().rates.copy, peaks.copy);
    }
}

#[test]
fn measured_rates_are_used_at_the_next_start() {
    let list = AdapterList::enumerate();
    let Some(adapter) = list.adapters().first() else {
        return;
    };
    let keeper = Arc::new(common::Kept::default());
    let open = |tier, mode| {
        let options = DeviceOptions {
            tier,
            keeper: Some(keeper.clone()),
            tune: TuneOptions {
                mode,
                ..TuneOptions::default()
            },
            ..DeviceOptions::default()
        };
        WgpuBackend::open(adapter, &options, "gpu").expect("the adapter opens")
    };
    let first = open(Tier::Full, None);
    let typical = first.gpu().model();
    assert_eq!(typical.origin, Origin::Typical);
    first.measure().expect("measures");
    let measured = first.gpu().model();
    assert_eq!(measured.origin, Origin::Measured);
    assert_ne!(measured.rates, typical.rates);
    drop(first);
    let again = open(Tier::Full, None).gpu().model();
    assert_eq!(again.origin, Origin::Measured);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a;
    assert!(near(again.rates.copy, measured.rates.copy));
    assert!(near(again.rates.f32, measured.rates.f32));
    assert_eq!(again.rates.cores, measured.rates.cores);
    // Other tiers were not measured, and whoever wants the same kernels at every start gets typical rates.
    for (tier, mode) in [(Tier::Base, None), (Tier::Full, Some(Tuning::Never))] {
        assert_eq!(open(tier, mode).gpu().model().origin, Origin::Typical);
    }
    // A damaged piece is none.
    for piece in keeper.0.lock().expect("pieces").values_mut() {
        if piece.starts_with(b"cupola gpu rates") {
            *piece = piece.slice(..piece.len() / 2);
        }
    }
    let damaged = open(Tier::Full, None).gpu().model();
    assert_eq!(damaged.origin, Origin::Typical);
}
