//! `cupola bench --worker`: answers a harness that times several engines in turn.
//!
//! One JSON object a line. At start `{"ready":true,"peer":"cupola","version":V}`. Requests:
//! `{"cmd":"load","case":"w2/b1s128"}`, `{"cmd":"run","n":8,"warmup_s":0.05,"max_s":0.6}`, `{"cmd":"quit"}`. Inputs of a case are
//! looked up in the folder `$PEERS_MODELS`: `inputs/CASE.NAME.bin` with extents in `inputs/CASE.json`. A model is `CASE.onnx`
//! or the shared file of a family; cases of `w6` are training steps of models of our own (`mnist_cnn`, `lstm_lm`, `gpt`).

use super::bench::{Job, Timed, sample};
use crate::args::BenchArgs;
use crate::fail::{Failure, Outcome};
use cupola::ir::convert::{self, Lanes};
use cupola::train::parts::{GradScaler, Optimiser, StepOptions, TrainError, TrainStep, zoo};
use cupola::{DType, Host, Model, Precision, Program, Session, Tensor, Value};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Answers requests on standard input until it ends.
pub fn worker(args: &BenchArgs) -> Outcome {
    say(&json!({ "ready": true, "peer": "cupola", "version": env!("CARGO_PKG_VERSION") }))?;
    let host = super::host(&args.compile);
    let mut job: Option<Box<dyn Timed>> = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if line.trim().is_empty() {
            continue;
        }
        let request: Json = serde_json::from_str(&line).unwrap_or(Json::Null);
        let reply = match request["cmd"].as_str() {
            Some("load") => {
                job = None;
                let start = Instant::now();
                let case = request["case"].as_str().unwrap_or_default();
                let loaded = load(case, args, &host).and_then(|mut j| {
                    let first = j.run()?;
                    let digest = match j.is_comparable() {
                        true => digest(&first),
                        false => Json::Null,
                    };
                    Ok((digest, j))
                });
                match loaded {
                    Ok((digest, loaded)) => {
                        job = Some(loaded);
                        json!({ "ok": true, "load_ms": start.elapsed().as_secs_f64() * 1e3, "digest": digest })
                    }
                    Err(f) => json!({ "ok": false, "error": f.message }),
                }
            }
            Some("run") => match &mut job {
                None => json!({ "ok": false, "error": "nothing is loaded" }),
                Some(job) => {
                    let number = |k: &str, default: f64| request[k].as_f64().unwrap_or(default);
                    let n = number("n", 8.0).max(1.0) as usize;
                    match sample(
                        &mut **job,
                        n,
                        number("warmup_s", 0.05),
                        number("max_s", 0.6),
                    ) {
                        Ok(samples) => json!({ "ok": true, "samples_ms": samples }),
                        Err(f) => json!({ "ok": false, "error": f.message }),
                    }
                }
            },
            Some("quit") => break,
            _ => json!({ "ok": false, "error": "unknown request" }),
        };
        say(&reply)?;
    }
    Ok(())
}

fn say(reply: &Json) -> Outcome {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{reply}").and_then(|()| out.flush());
    written.map_err(|e| Failure::new(1, "io", format!("standard output: {e}")))
}

fn load(case: &str, args: &BenchArgs, host: &Arc<Host>) -> Outcome<Box<dyn Timed>> {
    let folder = std::env::var_os("PEERS_MODELS").map(PathBuf::from);
    let folder = folder.ok_or_else(|| Failure::usage("PEERS_MODELS is not set"))?;
    let inputs = Inputs::read(&folder, case)?;
    let (family, rest) = case.split_once('/').unwrap_or((case, ""));
    let file = match family {
        "w2" => "minilm.onnx".to_string(),
        "w3" => format!("{rest}.onnx"),
        "w5" => {
            let layers = rest.trim_start_matches('l').split('b').next();
            format!("lstm{}.onnx", layers.unwrap_or("1"))
        }
        "w6" => return Ok(Box::new(Step::new(rest, &inputs, args, host)?)),
        _ => format!("{}.onnx", case.replace('/', "_")),
    };
    let path = folder.join(file);
    if !path.exists() {
        return Err(Failure::usage("not supported"));
    }
    let model = Model::open(path)?;
    let mut given = BTreeMap::new();
    for (name, ty) in &model.input_types()? {
        let dtype = ty.as_tensor().map_or(DType::F32, |t| t.dtype);
        if let Some(tensor) = inputs.get(name, dtype)? {
            given.insert(name.clone(), tensor.into());
        }
    }
    Ok(Box::new(Job {
        runner: model.runner(host.clone(), super::options(&args.compile)?),
        inputs: given,
    }))
}

/// The inputs of a case, as files.
struct Inputs {
    folder: PathBuf,
    key: String,
    shapes: Json,
}

impl Inputs {
    fn read(folder: &Path, case: &str) -> Outcome<Inputs> {
        let (folder, key) = (folder.join("inputs"), case.replace('/', "_"));
        let path = folder.join(format!("{key}.json"));
        if !path.exists() {
            return Err(Failure::usage("not supported"));
        }
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|e| Failure::io("cannot read", &path, e))?;
        let shapes = serde_json::from_str(&text);
        let shapes = shapes.map_err(|e| Failure::io("cannot parse", &path, e))?;
        Ok(Inputs {
            folder,
            key,
            shapes,
        })
    }

    /// An input by name; `None` where the case has none of that name.
    fn get(&self, name: &str, dtype: DType) -> Outcome<Option<Tensor>> {
        let Some(list) = self.shapes[name].as_array() else {
            return Ok(None);
        };
        let dims = list.iter().filter_map(Json::as_u64);
        let shape: Vec<usize> = dims.map(|d| d as usize).collect();
        let path = self.folder.join(format!("{}.{name}.bin", self.key));
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("cannot read", &path, e))?;
        let tensor = Tensor::new(dtype, shape, bytes.into());
        let what = || Failure::malformed(format!("{}: size", path.display()));
        tensor.map(Some).ok_or_else(what)
    }
}

/// A training step with its batch. First weights are our own, so that losses are not those of other engines.
struct Step {
    session: Session,
    step: TrainStep,
    batch: Vec<(&'static str, Tensor)>,
    rate: f64,
    done: u64,
}

impl Step {
    fn new(model: &str, inputs: &Inputs, args: &BenchArgs, host: &Arc<Host>) -> Outcome<Step> {
        let (built, optimiser, rate, dtype) = match model {
            "mnist_cnn" => (zoo::mnist_cnn(false), Optimiser::adam(), 1e-3, DType::F32),
            "lstm_lm" => (
                zoo::lstm_lm(&zoo::Lstm::default()),
                Optimiser::sgd(),
                0.1,
                DType::I64,
            ),
            "gpt" => (
                zoo::gpt(&zoo::Gpt::default()),
                Optimiser::adamw(),
                3e-4,
                DType::I64,
            ),
            _ => return Err(Failure::usage("not supported")),
        };
        let built = built.map_err(unfit)?;
        let mut batch = vec![];
        for (ours, theirs, dtype) in [("x", "x", dtype), ("labels", "y", DType::I64)] {
            let tensor = inputs.get(theirs, dtype)?;
            let missing = || Failure::malformed(format!("the case has no input '{theirs}'"));
            batch.push((ours, tensor.ok_or_else(missing)?));
        }
        let mut options = super::options(&args.compile)?;
        let narrow = match options.precision {
            Precision::Bf16 => Some(DType::BF16),
            Precision::F16 => Some(DType::F16),
            _ => None,
        };
        options.precision = Precision::Model;
        let settings = StepOptions {
            autocast: narrow,
            scaler: (narrow == Some(DType::F16)).then(GradScaler::default),
            ..StepOptions::default()
        };
        let step = built.net.train_step(built.loss, &optimiser, &settings);
        let step = step.map_err(unfit)?;
        let program = Program::compile(step.graph.clone(), host, &options)?;
        let mut session = Session::new(Arc::new(program));
        for slot in &step.slots {
            let value = step.initial(slot, 0).map_err(unfit)?;
            session.state_mut().set_slot(&slot.name, value)?;
        }
        Ok(Step {
            session,
            step,
            batch,
            rate,
            done: 0,
        })
    }
}

fn unfit(e: TrainError) -> Failure {
    cupola::Error::from(e).into()
}

impl Timed for Step {
    fn run(&mut self) -> Outcome<Vec<(String, Value)>> {
        self.done += 1;
        let batch = self.batch.iter().map(|(n, t)| (*n, t.clone()));
        let hyper = self.step.hyper(self.done, self.rate);
        let hyper = hyper.iter().map(|(n, t)| (n.as_str(), t.clone()));
        let inputs = batch.chain(hyper).map(|(n, t)| (n, t.into())).collect();
        Ok(self.session.run(inputs)?)
    }

    fn is_comparable(&self) -> bool {
        false
    }
}

/// Size, root mean square of the first 2^22 elements, and up to 64 evenly spaced elements of the first output.
fn digest(results: &[(String, Value)]) -> Json {
    let Some(Value::Tensor(t)) = results.first().map(|(_, v)| v) else {
        return Json::Null;
    };
    let Some(Lanes::F(v)) = convert::lanes(t) else {
        return Json::Null;
    };
    let head = &v[..v.len().min(1 << 22)];
    let rms = (head.iter().map(|x| x * x).sum::<f64>() / head.len().max(1) as f64).sqrt();
    let count = v.len().min(64);
    let at = |i: usize| {
        if count > 1 {
            v[i * (v.len() - 1) / (count - 1)]
        } else {
            v[0]
        }
    };
    json!({ "size": v.len(), "rms": rms, "at": (0..count).map(at).collect::<Vec<_>>() })
}
