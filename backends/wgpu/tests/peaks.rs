//! What a device is measured to reach.

mod common;

use cupola_wgpu::Tier;
use cupola_wgpu::peaks::measure;

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
