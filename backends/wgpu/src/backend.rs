//! The traits of `cupola-backend` over one GPU: units to executables. Launching them is the queue's business.

use std::sync::Arc;

use cupola_backend::{Backend, BackendError, Device, Executable, Rates, Result};
use cupola_ir::kernel::Unit;
use cupola_ir::target::{Aliasing, Target};
use cupola_ir::{DType, Scalar};

use crate::adapter::Adapter;
use crate::choice::DeviceModel;
use crate::device::{DeviceOptions, Forms, GpuDevice, STORAGE_ALIGNMENT};
use crate::emit;
use crate::error::Error;
use crate::executable::{WgpuExecutable, Work};
use crate::library::claim::{claim, claim_plain};
use crate::library::unit::LibraryUnit;
use crate::peaks;
use crate::queue::WgpuDevice;

/// Compiles for one GPU and runs there.
#[derive(Debug)]
pub struct WgpuBackend {
    target: Target,
    device: WgpuDevice,
}

impl WgpuBackend {
    /// Opens an adapter. `name` is the device's name in messages, as in `--device`.
    ///
    /// # Errors
    /// As [`GpuDevice::open`].
    pub fn open(adapter: &Adapter, options: &DeviceOptions, name: &str) -> Result<Self, Error> {
        let gpu = GpuDevice::open(adapter, options)?;
        Ok(Self {
            target: target(name, &gpu.model()),
            device: WgpuDevice::new(gpu, name, options)?,
        })
    }

    /// The GPU underneath.
    pub fn gpu(&self) -> &GpuDevice {
        self.device.gpu()
    }

    fn compile_one(&self, unit: &Unit) -> Result<Arc<dyn Executable>> {
        let unsupported = |error: emit::EmitError| BackendError::Unsupported {
            unit: unit.name(),
            device: self.target.name.clone(),
            what: error.0,
        };
        let work = match unit {
            Unit::Loops(kernel) => {
                // Every variant has the same expressions, so one says whether all can be written.
                emit::emit(kernel, emit::Variant::default()).map_err(unsupported)?;
                Work::Loops(Box::new(kernel.clone()))
            }
            Unit::Library(library) => {
                Work::Library(Arc::new(LibraryUnit::new(library).map_err(unsupported)?))
            }
        };
        Ok(Arc::new(WgpuExecutable::new(unit, work)))
    }
}

impl Backend for WgpuBackend {
    fn target(&self) -> &Target {
        &self.target
    }

    fn device(&self) -> &dyn Device {
        &self.device
    }

    fn measure(&self) -> Option<Rates> {
        let gpu = self.gpu();
        let peaks = peaks::measure(gpu).ok()?;
        peaks.remember(gpu);
        gpu.learn(peaks.rates(gpu.model().rates));
        Some(Rates {
            f32_ops: peaks.f32,
            reads: vec![(usize::MAX, peaks.copy)],
            copy: peaks.copy,
            f16_ops: peaks.f16,
            matrix_ops: peaks.matrix,
            submit: peaks.submit,
            dispatch: peaks.dispatch,
        })
    }

    fn compile(&self, units: &[&Unit]) -> Vec<Result<Arc<dyn Executable>>> {
        units.iter().map(|unit| self.compile_one(unit)).collect()
    }
}

/// What passes are told of a device.
pub fn target(name: &str, device: &DeviceModel) -> Target {
    use DType::*;
    let limits = &device.limits;
    Target {
        name: name.to_owned(),
        dtypes: vec![
            Bool, I2, I4, I8, I16, I32, I64, U2, U4, U8, U16, U32, U64, F16, BF16, F32, F64,
            F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1,
        ],
        scalars: Scalar::ALL.to_vec(),
        // One binding is kept for the fault word.
        max_buffers: limits.storage_buffers as usize - 1,
        alignment: STORAGE_ALIGNMENT as usize,
        max_binding: limits.binding_size,
        aliasing: Aliasing::Kernels,
        scatters_in_place: true,
        joins_in_turn: false,
        claim: match device.forms {
            Forms::Chosen | Forms::Parallel => claim,
            Forms::Plain => claim_plain,
        },
        half_factors: device.multiplies_halves(),
    }
}
