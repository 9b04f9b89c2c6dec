//! Models that come as graphs: their constants become parameters.

use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::{Net, Parameter, declare};
use cupola_ir::ops::CoreOp;
use cupola_ir::{Class, Graph, Op, Tensor, ValueId};

impl Net {
    /// A model made of a graph for inference, such as an imported file. The constants for whose name and value `is_weight` holds
    /// become parameters of that name (a number is added where several have it) that begin with the constant's value. Its
    /// outputs are the model's; [`Net::result`] gives them, to append a loss.
    ///
    /// Only constants of the outermost graph are asked for. Normalisation stays in its form for inference, and dropout that the
    /// file leaves out stays out.
    ///
    /// # Errors
    /// A constant that is chosen and is no float; no constant that is chosen.
    pub fn from_graph(graph: Graph, is_weight: &dyn Fn(&str, &Tensor) -> bool) -> Result<Net> {
        let taken = graph.nodes().filter_map(|(_, n)| match &n.op {
            Op::Core(CoreOp::Random(p)) => Some(p.stream),
            _ => None,
        });
        let mut net = Net {
            streams: taken.max().unwrap_or(0),
            graph,
            ..Net::default()
        };
        net.outputs = (net.graph.outputs().iter())
            .map(|(n, v)| (n.to_string(), *v))
            .collect();
        net.graph.retain_outputs(|_| false);
        let constants: Vec<(ValueId, Tensor)> = (net.graph.nodes())
            .filter_map(|(_, n)| {
                let v = *n.results.first()?;
                Some((v, net.graph.as_const(v)?.clone()))
            })
            .collect();
        for (value, tensor) in constants {
            let name = net.graph.value(value).name.clone();
            let name = name.unwrap_or_else(|| value.to_string().into());
            if is_weight(&name, &tensor) {
                net.adopt(value, &name, tensor)?;
            }
        }
        match net.parameters.is_empty() {
            true => {
                let what = "no constant of the graph was chosen to be trained";
                Err(TrainError::Options(what.into()))
            }
            false => Ok(net),
        }
    }

    /// The usual choice of constants for [`Net::from_graph`]: named floats of several elements, but for running statistics.
    pub fn is_weight(name: &str, value: &Tensor) -> bool {
        let statistic = [
            "running_mean",
            "running_var",
            "moving_mean",
            "moving_variance",
        ];
        value.dtype().class() == Class::Float
            && value.len() > 1
            && !name.starts_with('%')
            && !statistic.iter().any(|s| name.contains(s))
    }

    /// A result of the model by name; the first without a name.
    ///
    /// # Errors
    /// A result that the model has not.
    pub fn result(&self, name: Option<&str>) -> Result<ValueId> {
        let found = self
            .outputs
            .iter()
            .find(|(n, _)| name.is_none_or(|want| want == n));
        found.map(|(_, v)| *v).ok_or_else(|| {
            let names: Vec<&str> = self.outputs.iter().map(|(n, _)| n.as_str()).collect();
            let want = name.unwrap_or("any");
            TrainError::Options(format!("no output '{want}' among {names:?}"))
        })
    }

    /// Makes a constant a parameter.
    fn adopt(&mut self, value: ValueId, name: &str, tensor: Tensor) -> Result<()> {
        if tensor.dtype().class() != Class::Float {
            let what = format!("{tensor:?} has no gradient; only floats can be trained");
            return Err(TrainError::layer(name, what));
        }
        let mut unique = name.to_string();
        let mut count = 1;
        while self.graph.slots.contains_key(&unique) {
            count += 1;
            unique = format!("{name}.{count}");
        }
        let ty = tensor.ty();
        let initial = Init::ZEROS.draw(0, name, &ty)?;
        let read = declare(&mut self.graph, &unique, &ty, initial)?;
        self.graph.replace(value, read);
        for (_, output) in &mut self.outputs {
            if *output == value {
                *output = read;
            }
        }
        self.parameters.push(Parameter {
            name: unique,
            value: read,
            ty,
            init: Init::Values(tensor),
            trainable: true,
        });
        Ok(())
    }
}
