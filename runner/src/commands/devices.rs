//! `cupola devices` and `cupola doctor`.

use crate::args::{DevicesArgs, TryGpuArgs};
use crate::fail::{Failure, Outcome};
use crate::outputs;
use cupola::ir::Scalar;
use cupola::runtime::{DeviceInfo, TuneOptions, Tuning};
use cupola::{DType, DeviceSpec, Graph, Options, Program, Session, Tensor, TensorType};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// Devices that are only looked at are not tuned.
fn known() -> TuneOptions {
    TuneOptions {
        mode: Some(Tuning::Known),
        ..TuneOptions::default()
    }
}

/// Lists the CPU and every adapter with what they can do.
pub fn devices(args: &DevicesArgs) -> Outcome {
    let all = super::host_with(known()).devices()?;
    match &args.json {
        Some(to) => outputs::write_json(to, &all.iter().map(to_json).collect()),
        None => {
            for device in &all {
                println!("{}  {}", device.spec, device.name);
                let width = device.facts.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
                device
                    .facts
                    .iter()
                    .for_each(|(k, v)| println!("  {k:width$}  {v}"));
            }
            Ok(())
        }
    }
}

/// Tries the features of a GPU, for the process that started this one to do so.
pub fn try_gpu(args: &TryGpuArgs) -> Outcome {
    let tried = cupola::runtime::try_gpu(args.adapter, &mut std::io::stdout());
    tried.map_err(|e| Failure::new(1, "run", e.to_string()))
}

fn to_json(d: &DeviceInfo) -> Json {
    let facts: serde_json::Map<String, Json> =
        d.facts.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    json!({ "device": d.spec.to_string(), "name": d.name, "facts": facts })
}

/// Runs a small graph on every device and says what to do where it fails.
pub fn doctor(args: &DevicesArgs) -> Outcome {
    let host = super::host_with(known());
    let mut rows = vec![];
    let all = host.devices()?;
    let specs = std::iter::once(DeviceSpec::Reference).chain(all.into_iter().map(|d| d.spec));
    for spec in specs {
        let found = check(&host, &spec);
        rows.push((spec, found));
    }
    if let Some(to) = &args.json {
        let all: Vec<Json> = rows
            .iter()
            .map(|(d, r)| json!({ "device": d.to_string(), "ok": r.is_ok(), "problem": r.as_ref().err() }))
            .collect();
        outputs::write_json(to, &json!(all))?;
    } else {
        for (device, result) in &rows {
            match result {
                Ok(()) => println!("{:12} ok", device.to_string()),
                Err(what) => println!("{:12} FAILED  {what}", device.to_string()),
            }
        }
        if !rows.iter().any(|(d, _)| matches!(d, DeviceSpec::Gpu(_))) {
            println!(
                "no GPU adapter: install a Vulkan driver and loader (on Debian: mesa-vulkan-drivers, libvulkan1)"
            );
        }
    }
    let broken: Vec<String> = rows
        .iter()
        .filter(|(_, r)| r.is_err())
        .map(|(d, _)| d.to_string())
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    let message = format!("{} failed the check", broken.join(", "));
    Err(Failure::new(1, "run", message))
}

/// `softmax(max(x w + b, 0))` on small numbers against the reference.
fn check(host: &Arc<cupola::Host>, device: &DeviceSpec) -> Result<(), String> {
    let graph = small_graph().map_err(|e| e.to_string())?;
    let values: Vec<f32> = (0..35).map(|i| (i as f32 * 0.37).sin()).collect();
    let x: cupola::Value = Tensor::from_slice(&[5, 7], &values)
        .ok_or("bug: input")?
        .into();
    let run = |device: &DeviceSpec| -> Result<Vec<f32>, String> {
        let options = Options {
            device: device.clone(),
            verify: true,
            ..Options::default()
        };
        let program = Program::compile(graph.clone(), host, &options).map_err(|e| e.to_string())?;
        let out = Session::new(Arc::new(program))
            .run(vec![("x", x.clone())])
            .map_err(|e| e.to_string())?;
        let tensor = out
            .first()
            .and_then(|(_, v)| v.as_tensor())
            .and_then(Tensor::to_vec::<f32>);
        tensor.ok_or_else(|| "no result".to_string())
    };
    let (want, got) = (run(&DeviceSpec::Reference)?, run(device)?);
    let worst = want
        .iter()
        .zip(&got)
        .map(|(w, g)| (w - g).abs())
        .fold(0.0f32, f32::max);
    if want.len() == got.len() && worst < 1e-4 {
        Ok(())
    } else {
        Err(format!("results are off by {worst}"))
    }
}

fn small_graph() -> cupola::ir::Result<Graph> {
    let mut g = Graph::new("doctor");
    let x = g.input("x", TensorType::new(DType::F32, [5usize, 7]))?;
    let weights: Vec<f32> = (0..21).map(|i| (i as f32 * 0.71).cos()).collect();
    let w = Tensor::from_slice(&[7, 3], &weights).unwrap_or_else(|| unreachable!("bug: weights"));
    let w = g.constant(w)?;
    let b = g.constant(Tensor::vector(&[0.1f32, -0.2, 0.3]))?;
    let y = g.matmul(x, w)?;
    let y = g.binary(Scalar::Add, y, b)?;
    let zero = g.number_like(0.0, y)?;
    let y = g.binary(Scalar::Max, y, zero)?;
    let softmax = cupola::ir::CompositeOp::from(cupola::ir::composite::Softmax {
        axis: 1,
        log: false,
    });
    let y = g.one(cupola::ir::Op::Composite(softmax), &[y])?;
    g.output("y", y);
    Ok(g)
}
