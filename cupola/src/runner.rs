//! Runs a model: compiles it once, or once per value of the inputs that decide its structure.

use crate::error::Result;
use crate::model::{Model, Structural, open_type_of, type_of};
use cupola_ir::{Value, ValueType};
use cupola_runtime::{CompileOptions, Host, Program, RunStats, Session};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How to compile and run.
pub type Options = CompileOptions;

/// Most structures kept compiled at a time.
const MOST_VARIANTS: usize = 16;

/// A model ready to run.
pub struct Runner {
    model: Model,
    host: Arc<Host>,
    options: Options,
    structural: Vec<Structural>,
    variants: Vec<(Vec<Key>, Session)>,
    compiles: usize,
    compile_time: Duration,
}

impl Runner {
    pub(crate) fn new(model: Model, host: Arc<Host>, mut options: Options) -> Runner {
        model.complete(&mut options);
        Runner {
            model,
            host,
            options,
            structural: vec![],
            variants: vec![],
            compiles: 0,
            compile_time: Duration::ZERO,
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The session for these inputs, compiled if it is the first of its structure.
    ///
    /// # Errors
    /// What import and compilation find.
    pub fn session(&mut self, inputs: &BTreeMap<String, Value>) -> Result<&mut Session> {
        // What kept no state loses nothing when it is made again on a device opened anew.
        self.variants.retain(|(_, session)| {
            let program = session.program();
            !program.is_lost() || !program.graph().slots.is_empty()
        });
        let key = key_of(&self.structural, inputs);
        if let Some(at) = self.variants.iter().position(|(k, _)| *k == key) {
            let found = self.variants.remove(at);
            self.variants.push(found);
        } else {
            let (graph, structural) = self.model.graph_for(inputs)?;
            if structural != self.structural {
                self.structural = structural;
                self.variants.clear();
            }
            let key = key_of(&self.structural, inputs);
            let program = Program::compile(graph, &self.host, &self.options)?;
            self.compiles += usize::from(!program.was_kept());
            self.compile_time += program.compile_time;
            if self.variants.len() == MOST_VARIANTS {
                self.variants.remove(0);
            }
            self.variants.push((key, Session::new(Arc::new(program))));
        }
        let last = self.variants.last_mut();
        Ok(&mut last
            .unwrap_or_else(|| unreachable!("bug: variant was just pushed"))
            .1)
    }

    /// Runs with named inputs; gives named outputs in the model's order.
    ///
    /// # Errors
    /// What import, compilation and the run find. After the loss of a device the next run compiles again, on the device
    /// opened anew, unless the model keeps state, which was lost with it.
    pub fn run(&mut self, inputs: Vec<(&str, Value)>) -> Result<Vec<(String, Value)>> {
        let by_name: BTreeMap<String, Value> = inputs
            .into_iter()
            .map(|(n, v)| (n.to_string(), v))
            .collect();
        let session = self.session(&by_name)?;
        let named = by_name
            .iter()
            .map(|(n, v)| (n.as_str(), v.clone()))
            .collect();
        Ok(session.run(named)?)
    }

    /// Programs compiled so far; those whose code and weights had been kept do not count.
    pub fn compiles(&self) -> usize {
        self.compiles
    }

    /// Time spent compiling so far.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// The program that ran last.
    pub fn program(&self) -> Option<&Arc<Program>> {
        self.variants.last().map(|(_, s)| s.program())
    }

    /// Figures of the last run.
    pub fn stats(&self) -> RunStats {
        self.variants
            .last()
            .map(|(_, s)| s.stats())
            .unwrap_or_default()
    }
}

/// What one structural input contributes to the choice of a variant.
#[derive(Clone, Debug, PartialEq)]
enum Key {
    Missing,
    Type(Option<ValueType>),
    Value(Value),
}

fn key_of(structural: &[Structural], inputs: &BTreeMap<String, Value>) -> Vec<Key> {
    let one = |s: &Structural| match s {
        Structural::Rank(name) => match inputs.get(name) {
            Some(v) => Key::Type(open_type_of(name, v)),
            None => Key::Missing,
        },
        Structural::Shape(name) => match inputs.get(name) {
            Some(v) => Key::Type(type_of(name, v)),
            None => Key::Missing,
        },
        Structural::Value(name) => inputs.get(name).cloned().map_or(Key::Missing, Key::Value),
    };
    structural.iter().map(one).collect()
}
