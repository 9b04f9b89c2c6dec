//! What units are predicted to move, compute and take on a device that need not be there.
//!
//! Bytes and operations are counted from the unit and its sizes; dispatches are those that the device would be given, with
//! the instructions of their SPIR-V texts. Seconds come from the cost model ([`crate::choice`]).

use cupola_ir::kernel::{Kernel, Library, Unit};
use cupola_shaders::{ParamSpace, Shader, check};

use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::effort::Effort;
use crate::emit::{self, EmitError, Part, Variant};
use crate::error::Error;
use crate::library::plans::Entry;
use crate::library::unit::LibraryUnit;
use crate::schedule;

/// A unit as a device would run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Name of the unit.
    pub name: String,
    /// Its dispatches, in order.
    pub dispatches: Vec<Dispatch>,
    /// Bytes of operands and results, each element once.
    pub bytes: f64,
    /// Operations: a multiply-add is two, a function of one element is one.
    pub operations: f64,
    /// Predicted seconds.
    pub seconds: f64,
}

/// A dispatch of a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// Name of the kernel's form.
    pub kernel: String,
    /// Workgroups.
    pub groups: u64,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Instructions of the kernel's functions in SPIR-V, each counted once.
    pub instructions: usize,
}

/// Predicts a unit with its sizes.
///
/// # Errors
/// [`Error::Limit`] and [`Error::Range`] for sizes that it cannot run with, [`Error::Shader`] for a unit without a kernel.
pub fn forecast(unit: &Unit, sizes: &[i64], device: &DeviceModel) -> Result<Forecast, Error> {
    let (dispatches, own) = match unit {
        Unit::Loops(kernel) => (loops(kernel, sizes, device)?, None),
        Unit::Library(library) => of_library(library, sizes, device)?,
    };
    let effort = Effort::of(unit, sizes);
    Ok(Forecast {
        name: unit.name(),
        seconds: own.unwrap_or_else(|| seconds(device, &effort, &dispatches)),
        dispatches,
        bytes: effort.bytes,
        operations: effort.operations,
    })
}

fn loops(kernel: &Kernel, sizes: &[i64], device: &DeviceModel) -> Result<Vec<Dispatch>, Error> {
    let bound = schedule::bind(kernel, sizes, device).map_err(|error| Error::Range {
        what: "kernel",
        reason: error.to_string(),
    })?;
    let launch = |&(part, groups): &(Part, u64)| {
        let variant = Variant {
            part,
            ..bound.variant.clone()
        };
        let shader = emit::emit(&bound.kernel, variant);
        dispatch(&shader.map_err(|e| unwritten(&kernel.name, e))?, groups)
    };
    bound.launches.iter().map(launch).collect()
}

/// The dispatches, and seconds where the problem has a model of its own.
fn of_library(
    library: &Library,
    sizes: &[i64],
    device: &DeviceModel,
) -> Result<(Vec<Dispatch>, Option<f64>), Error> {
    let unit = LibraryUnit::new(library).map_err(|e| unwritten(&library.op.name(), e))?;
    let first = Entry {
        within: 1.0,
        most: 1,
    };
    let contest = unit.contest(sizes, device, first)?;
    let (program, seconds) = match contest.and_then(|mut contest| contest.candidates.pop()) {
        Some(candidate) => (candidate.program, Some(candidate.seconds)),
        None => (unit.plan(sizes, device)?, None),
    };
    let calls = program.steps.iter().filter(|(call, _)| call.groups > 0);
    let dispatches = calls.map(|(call, _)| dispatch(&call.shader, call.groups));
    Ok((dispatches.collect::<Result<_, _>>()?, seconds))
}

fn unwritten(label: &str, error: EmitError) -> Error {
    Error::Shader {
        label: label.to_owned(),
        message: error.0,
    }
}

/// The dispatches share the work; each takes its own time to start.
fn seconds(device: &DeviceModel, effort: &Effort, dispatches: &[Dispatch]) -> f64 {
    let Some(widest) = dispatches.iter().max_by_key(|d| d.groups) else {
        return 0.0;
    };
    let work = Work {
        bytes: effort.bytes,
        cached: 0.0,
        operations: effort.instructions,
        arithmetic: Arithmetic::F32,
        share: 1.0,
        groups: widest.groups as f64,
        threads: f64::from(widest.threads),
    };
    device.seconds(&work) + (dispatches.len() - 1) as f64 * device.rates.dispatch
}

fn dispatch(shader: &Shader, groups: u64) -> Result<Dispatch, Error> {
    let failed = |message: String| Error::Shader {
        label: shader.label.clone(),
        message,
    };
    let translated = check::check(shader, ParamSpace::Uniform);
    let spirv = translated.map_err(|error| failed(error.to_string()))?.spirv;
    let (threads, instructions) =
        check::spirv_facts(&spirv).ok_or_else(|| failed("SPIR-V without a workgroup".into()))?;
    Ok(Dispatch {
        kernel: shader.label.clone(),
        groups,
        threads,
        instructions,
    })
}
