//! What a graph would do on a GPU that need not be there.

use crate::devices::{DeviceSpec, Host};
use crate::error::{Result, RuntimeError};
use cupola_backend::BackendError;
use cupola_ir::target::Target;
use cupola_ir::{Bindings, Dim, Graph};
use cupola_passes::plan::{DeviceId, Step};
use cupola_passes::{Level, Options, Precision};
use cupola_wgpu::{DeviceModel, Forecast, known, target};

/// A GPU known by its data sheet.
#[derive(Clone, Debug)]
pub struct KnownGpu {
    own: Target,
    model: DeviceModel,
    /// Of the processor beside it.
    host: Target,
}

impl KnownGpu {
    /// By name, `h200` for one; without its optional features, at the least limits, as `h200,base`.
    ///
    /// # Errors
    /// [`RuntimeError::NoDevice`], with the names that are known, or without a CPU device.
    pub fn named(text: &str) -> Result<KnownGpu> {
        let (name, base) = match text.strip_suffix(",base") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let model = known(name, base).ok_or_else(|| {
            let names: Vec<_> = cupola_wgpu::KNOWN.iter().map(|known| known.name).collect();
            RuntimeError::NoDevice {
                device: text.to_owned(),
                what: format!("known by data sheets: {}", names.join(", ")),
            }
        })?;
        let (_, devices) = Host::new().open(&DeviceSpec::Cpu, 1)?;
        Ok(KnownGpu {
            own: target(text, &model),
            model,
            host: devices[0].target().clone(),
        })
    }

    /// Bytes read and written per second by a copy, and operations per second in f32 and in f16 of its matrix units, or
    /// without such units outside them.
    pub fn rates(&self) -> (f64, f64, f64) {
        let (rates, features) = (&self.model.rates, &self.model.features);
        let half = match (features.cooperative.is_empty(), features.f16) {
            (false, _) => rates.matrix,
            (true, true) => rates.f16,
            (true, false) => rates.f32,
        };
        (rates.copy, rates.f32, half)
    }

    /// The units of a graph that run there, in order, with what is predicted of each. Steps on the host and the bodies of
    /// regions are left out.
    ///
    /// # Errors
    /// What passes find, lengths that the kernels cannot handle, and sizes that `bindings` do not give.
    pub fn forecast(
        &self,
        graph: Graph,
        level: Level,
        precision: Precision,
        bindings: &Bindings,
    ) -> Result<Vec<Forecast>> {
        let device = DeviceId(1);
        let options = Options {
            device,
            level,
            precision,
            ..Options::default()
        };
        let compiled = cupola_passes::compile(graph, &[&self.host, &self.own], &options)?;
        let mut found = vec![];
        for step in &compiled.plan.steps {
            let Step::Launch { unit, .. } = step else {
                continue;
            };
            let placed = &compiled.units[*unit];
            if placed.device != device {
                continue;
            }
            let sizes = placed.unit.sizes().iter().map(|size| size.eval(bindings));
            let sizes: Option<Vec<i64>> = sizes.collect();
            let sizes = sizes.ok_or_else(|| {
                let of: Vec<_> = placed.unit.sizes().iter().map(Dim::to_string).collect();
                RuntimeError::input(of.join(", "), "a size that is not bound")
            })?;
            let forecast = cupola_wgpu::forecast(&placed.unit, &sizes, &self.model);
            found.push(forecast.map_err(|e| BackendError::Device {
                device: self.own.name.clone(),
                what: e.to_string(),
            })?);
        }
        Ok(found)
    }
}
