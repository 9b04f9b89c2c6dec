//! Opens an adapter with those optional features that work on it.
//!
//! What a driver offers is tried before it is used: small kernels with known answers, in one submission. Features whose
//! mere use can end the process (cooperative matrices: drivers were seen to crash over them) are tried in another process
//! first, by a [`Prober`]. Findings are kept by adapter and driver, so that all this happens once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use super::optional::{Findings, Optional};
use super::{
    DeviceFeatures, DeviceOptions, Forms, GpuDevice, Health, STORAGE_ALIGNMENT, Tier, buffer,
    inject, lock, one_line, pipeline, reuse, selftest, submit,
};
use crate::adapter::{Adapter, AdapterFacts, AdapterKind, AdapterLimits, Timestamps};
use crate::choice::{DeviceModel, Origin, Rates, Threading};
use crate::error::Error;

/// Tries an adapter's optional features where a crash does no harm.
pub trait Prober: fmt::Debug + Send + Sync {
    /// Has [`try_out`] write about the adapter of this index in another process.
    ///
    /// # Errors
    /// Why nothing could be started.
    fn probe(&self, adapter: usize) -> Result<Attempt, String>;
}

/// What another process wrote, and what kept it from the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// What [`try_out`] wrote, as far as it came.
    pub text: String,
    /// Why it did not end well, if so.
    pub cut: Option<Cut>,
}

/// How an attempt ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// The process ended, in these words.
    Ended(String),
    /// It was stopped after this time.
    Slow(Duration),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(how) => write!(f, "the process that tried it ended: {how}"),
            Self::Slow(after) => write!(f, "no answer within {} s", after.as_secs()),
        }
    }
}

/// The part of a [`Prober`] in the other process: tries what the adapter offers and writes what it finds, first of what
/// is safe to try, then of everything. The reader takes the last that is whole.
///
/// # Errors
/// Those of `to`; where the adapter cannot be used at all, that, as an error of other kind.
pub fn try_out(adapter: &Adapter, to: &mut dyn io::Write) -> io::Result<()> {
    let facts = adapter.facts();
    let (risky, safe) = by_risk(&Optional::offered(facts, Tier::Experimental));
    let mut findings = Findings::default();
    for group in [safe, risky] {
        examine_group(adapter, &group, &mut findings).map_err(io::Error::other)?;
        findings.write(facts, to)?;
        to.flush()?;
    }
    Ok(())
}

impl GpuDevice {
    /// Opens `adapter`. Optional features that it lacks or that do not work are left out without an error; see
    /// [`Self::features`] and [`Self::findings`].
    ///
    /// # Errors
    /// [`Error::Unusable`] if the adapter is below the base tier or computes wrongly, [`Error::Open`] if the driver gives
    /// no device.
    pub fn open(adapter: &Adapter, options: &DeviceOptions) -> Result<Self, Error> {
        let facts = adapter.facts();
        if let Some(reason) = &facts.refusal {
            return Err(unusable(facts, reason.clone()));
        }
        let mut findings = findings(adapter, options)?;
        loop {
            match start(adapter, options, &findings) {
                // The driver offers more than it gives: the riskiest goes first.
                Err(Error::Open { reason, .. }) if !findings.works.is_empty() => {
                    let risky = findings.works.iter().any(|feature| feature.is_risky());
                    findings.drop_all(|feature| feature.is_risky() || !risky, &reason);
                }
                started => return started,
            }
        }
    }
}

fn unusable(facts: &AdapterFacts, reason: String) -> Error {
    Error::Unusable {
        adapter: facts.name.clone(),
        reason,
    }
}

/// What is known of the features that a tier has on this adapter, found out now if nobody has before.
fn findings(adapter: &Adapter, options: &DeviceOptions) -> Result<Findings, Error> {
    let facts = adapter.facts();
    let offered = Optional::offered(facts, options.tier);
    let key = Findings::key(facts, &offered);
    let kept = options.keeper.as_ref().and_then(|keeper| keeper.find(key));
    let known = kept.and_then(|bytes| {
        let text = std::str::from_utf8(&bytes).ok()?.to_owned();
        Findings::read(&text, facts, &offered)
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let (findings, lasting) = try_first(adapter, options, &offered)?;
    for (feature, reason) in &findings.dropped {
        tracing::info!(adapter = facts.name, %feature, reason, "not used");
    }
    let mut text = Vec::new();
    if let (true, Some(keeper), Ok(())) =
        (lasting, &options.keeper, findings.write(facts, &mut text))
    {
        keeper.keep(key, text.into());
    }
    Ok(findings)
}

/// Tries features, risky ones elsewhere; and whether another time would give the same.
fn try_first(
    adapter: &Adapter,
    options: &DeviceOptions,
    offered: &[Optional],
) -> Result<(Findings, bool), Error> {
    let facts = adapter.facts();
    let (risky, safe) = by_risk(offered);
    if risky.is_empty() {
        return Ok((examine(adapter, &safe)?, true));
    }
    let attempt = options.prober.as_ref().map(|p| p.probe(facts.index));
    let without = |reason: &str| {
        let mut findings = examine(adapter, &safe)?;
        for &feature in &risky {
            findings.note(feature, Err(reason.to_owned()));
        }
        Ok(findings)
    };
    match attempt {
        Some(Ok(attempt)) => match read_attempt(&attempt, facts, &safe, offered) {
            Some(findings) => {
                let lasting = !matches!(attempt.cut, Some(Cut::Slow(_)));
                Ok((findings, lasting))
            }
            None => Ok((
                without("the process that tried it said nothing of it")?,
                false,
            )),
        },
        Some(Err(reason)) => Ok((without(&format!("it could not be tried: {reason}"))?, false)),
        None if facts.kind == AdapterKind::Software => {
            let reason = "it was not tried, since that can end the process";
            Ok((without(reason)?, false))
        }
        None => Ok((examine(adapter, offered)?, true)),
    }
}

/// What an attempt says of all features; of the risky ones, where it was cut off, that.
fn read_attempt(
    attempt: &Attempt,
    facts: &AdapterFacts,
    safe: &[Optional],
    offered: &[Optional],
) -> Option<Findings> {
    let parts: Vec<&str> = attempt.text.split_inclusive("end\n").collect();
    if let Some(all) = parts
        .get(1)
        .and_then(|text| Findings::read(text, facts, offered))
    {
        return Some(all);
    }
    let cut = attempt.cut.as_ref()?.to_string();
    let found = parts
        .first()
        .and_then(|text| Findings::read(text, facts, safe));
    // What ended the process before anything was found may be any of them.
    let mut findings = found.clone().unwrap_or_default();
    let untold = offered
        .iter()
        .filter(|feature| found.is_none() || feature.is_risky());
    for &feature in untold {
        findings.note(feature, Err(cut.clone()));
    }
    Some(findings)
}

/// Tries features in this process.
fn examine(adapter: &Adapter, offered: &[Optional]) -> Result<Findings, Error> {
    let (risky, safe) = by_risk(offered);
    let mut findings = Findings::default();
    examine_group(adapter, &safe, &mut findings)?;
    if !risky.is_empty() {
        examine_group(adapter, &risky, &mut findings)?;
    }
    Ok(findings)
}

/// The risky ones and the others.
fn by_risk(offered: &[Optional]) -> (Vec<Optional>, Vec<Optional>) {
    offered.iter().partition(|feature| feature.is_risky())
}

/// Tries features beside those known to work: all together, and where that fails as a whole each on a device of its own.
fn examine_group(
    adapter: &Adapter,
    group: &[Optional],
    findings: &mut Findings,
) -> Result<(), Error> {
    let known = findings.clone();
    let mut able = Vec::new();
    for &feature in group {
        match feature
            .needs()
            .filter(|needed| !known.works.contains(needed))
        {
            Some(needed) => findings.note(feature, Err(format!("it needs {needed}"))),
            None => able.push(feature),
        }
    }
    let together = |features: &[Optional]| {
        let mut with = known.clone();
        with.works.extend_from_slice(features);
        let device = start(adapter, &DeviceOptions::default(), &with)?;
        let (basics, verdicts) = selftest::run(&device, features)?;
        let wrong = |reason| unusable(adapter.facts(), format!("it computes wrongly: {reason}"));
        basics.map_err(wrong).map(|()| verdicts)
    };
    match together(&able) {
        Ok(verdicts) => {
            for (&feature, verdict) in able.iter().zip(verdicts) {
                findings.note(feature, verdict);
            }
        }
        Err(error) if able.is_empty() => return Err(error),
        Err(_) => {
            for &feature in &able {
                let alone = together(&[feature]).map_err(|error| error.to_string());
                findings.note(feature, alone.and_then(|all| all.into_iter().collect()));
            }
        }
    }
    Ok(())
}

/// A device with the features that work.
fn start(
    adapter: &Adapter,
    options: &DeviceOptions,
    findings: &Findings,
) -> Result<GpuDevice, Error> {
    let facts = adapter.facts().clone();
    let works = |feature: Optional| findings.works.contains(&feature);
    let cooperative: Vec<_> = findings
        .works
        .iter()
        .filter_map(|feature| match feature {
            Optional::Cooperative(shape) => Some(*shape),
            _ => None,
        })
        .collect();
    let tier = match options.tier {
        Tier::Experimental if cooperative.is_empty() => Tier::Full,
        tier => tier,
    };
    let mut wanted = wgpu::Features::empty();
    if tier >= Tier::Full {
        let silent = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
        wanted |= silent & adapter.handle.features();
    }
    for feature in &findings.works {
        wanted |= feature.feature();
    }
    let limits = match tier {
        Tier::Base => wgpu::Limits::default(),
        Tier::Full | Tier::Experimental => adapter.handle.limits(),
    };
    let opened = request(&adapter.handle, wanted, &limits);
    let (device, queue) = opened.map_err(|reason| Error::Open {
        adapter: facts.name.clone(),
        reason,
    })?;
    let health = watch(&device);
    let features = DeviceFeatures {
        f16: works(Optional::F16),
        subgroups: facts
            .features
            .subgroups
            .filter(|_| works(Optional::Subgroups)),
        int64: works(Optional::Int64),
        cooperative,
        timestamps: match wanted.contains(wgpu::Features::TIMESTAMP_QUERY) {
            true => Timestamps::PassBoundary,
            false => Timestamps::Absent,
        },
        immediate_size: match works(Optional::Immediates) {
            true => limits.max_immediate_size,
            false => 0,
        },
    };
    let mut limits = AdapterLimits::of(&limits);
    if let Some(least) = options.memory_limits {
        limits.binding_size = limits
            .binding_size
            .min(least.binding.max(STORAGE_ALIGNMENT));
        limits.buffer_size = limits.buffer_size.min(least.buffer.max(STORAGE_ALIGNMENT));
    }
    let mut rates = Rates::typical(facts.kind, facts.vendor);
    if options.forms == Forms::Parallel {
        rates.threading = Threading::GPU;
    }
    let model = DeviceModel {
        features: features.clone(),
        limits: limits.clone(),
        rates,
        forms: options.forms,
        origin: Origin::Typical,
        choices: Arc::default(),
    };
    Ok(GpuDevice {
        limits,
        model: Mutex::new(Arc::new(model)),
        pipelines: pipeline::PipelineCache::new(&device, &facts, options.keeper.as_ref()),
        params: submit::ParamPool::new(&device),
        bound: Arc::default(),
        staging: reuse::StagingPool::default(),
        uploads: Mutex::default(),
        injector: inject::Injector::new(options.inject),
        memory: Arc::new(buffer::MemoryAccount::new(options.memory_budget)),
        checks: options.checks,
        translate: options.translate,
        keeper: options.keeper.clone(),
        books: buffer::Books::default(),
        device,
        queue,
        facts,
        features,
        tier,
        findings: findings.clone(),
        health,
    })
}

/// A device, or the driver's words. wgpu panics instead when a driver offers a feature that it then refuses.
fn request(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Result<(wgpu::Device, wgpu::Queue), String> {
    let experimental_features = if features.intersects(wgpu::Features::all_experimental_mask()) {
        // SAFETY: the caller of `GpuDevice::open` chose `Tier::Experimental`, whose documentation passes wgpu's warning
        // on; kernels that use the feature come only from this crate's own templates.
        unsafe { wgpu::ExperimentalFeatures::enabled() }
    } else {
        wgpu::ExperimentalFeatures::disabled()
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("cupola"),
        required_features: features,
        required_limits: limits.clone(),
        experimental_features,
        memory_hints: wgpu::MemoryHints::Performance,
        trace: wgpu::Trace::Off,
    };
    catch_unwind(AssertUnwindSafe(|| {
        pollster::block_on(adapter.request_device(&descriptor))
    }))
    .map_err(|_| "the driver failed while the device was created".to_owned())?
    .map_err(|error| one_line(&error.to_string()))
}

/// Installs the callbacks that note loss and stray errors.
fn watch(device: &wgpu::Device) -> Arc<Health> {
    let health = Arc::new(Health::default());
    let lost = Arc::clone(&health);
    device.set_device_lost_callback(move |reason, message| {
        let words = if message.is_empty() {
            format!("{reason:?}")
        } else {
            one_line(&message)
        };
        // Dropping the device reports a loss too; nobody is left to read that one.
        tracing::debug!(reason = words, "GPU device lost");
        lock(&lost.lost).get_or_insert(words);
    });
    let stray = Arc::clone(&health);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let message = one_line(&error.to_string());
        tracing::error!(message, "GPU error outside any call");
        lock(&stray.stray).get_or_insert(message);
    }));
    health
}
