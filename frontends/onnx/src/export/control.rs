//! Regions: as subgraphs of `If`, `Loop` and `Scan`, or inlined.
//!
//! A region captures nothing implicitly, an ONNX subgraph sees everything around it: captures of a
//! region simply have the names of the operands.

use cupola_ir::ops::{Call, If, Loop, Scan};
use cupola_ir::{DType, Dim, Graph, Node, Sym, TensorType, ValueType};

use super::{Exporter, Result};
use crate::proto::{AttributeProto, GraphProto, ValueInfoProto};
use crate::write::{self, AttributeValue, attribute};

impl Exporter<'_> {
    pub(super) fn export_if(&mut self, operands: &[&str], p: &If) -> Result<Vec<String>> {
        let captures = owned(&operands[1..]);
        let then_branch = self.subgraph(&p.then_branch, &captures, &[])?;
        let else_branch = self.subgraph(&p.else_branch, &captures, &[])?;
        let attributes = [
            graph("then_branch", then_branch),
            graph("else_branch", else_branch),
        ];
        let results = self.emit_list("If", &operands[..1], &attributes, p.results.len());
        self.bind_results(&p.results, &results, &p.binds);
        Ok(results)
    }

    pub(super) fn export_loop(
        &mut self,
        operands: &[&str],
        p: &Loop,
        outer: &Graph,
        node: &Node,
    ) -> Result<Vec<String>> {
        let carried = self.inputs_like(&p.body, 1..1 + p.carried)?;
        let iteration = self.inputs_like(&p.body, 0..1)?.remove(0);
        let name = self.unique("condition");
        let kind = ValueType::from(TensorType::scalar(DType::Bool));
        let condition = write::value_info(&name, self.value_type(&kind)?);
        let names: Vec<String> = [iteration.name()]
            .into_iter()
            .chain(carried.iter().map(|info| info.name()))
            .chain(operands[2 + p.carried..].iter().copied())
            .map(str::to_owned)
            .collect();
        let inputs = [&[iteration, condition][..], &carried].concat();
        let body = self.subgraph(&p.body, &names, &inputs)?;
        let limit = outer
            .as_const(node.operands[0])
            .and_then(|limit| limit.to_vec::<i64>());
        let limit = match limit.as_deref() {
            Some([limit]) if *limit < 0 => String::new(),
            Some(_) => operands[0].to_owned(),
            None => {
                let zero = self.ints(&[0]);
                let most = self.ints(&[i64::MAX]);
                let endless = self.emit("Less", &[operands[0], &zero], &[]);
                self.emit("Where", &[&endless, &most, operands[0]], &[])
            }
        };
        let inputs = [&[&*limit, operands[1]], &operands[2..2 + p.carried]].concat();
        let results = self.emit_list("Loop", &inputs, &[graph("body", body)], p.results.len());
        self.bind_results(&p.results, &results, &p.binds);
        Ok(results)
    }

    pub(super) fn export_scan(&mut self, operands: &[&str], p: &Scan) -> Result<Vec<String>> {
        let given = p.carried + p.scanned;
        let inputs = self.inputs_like(&p.body, 0..given)?;
        let names: Vec<String> = inputs
            .iter()
            .map(|info| info.name())
            .chain(operands[given..].iter().copied())
            .map(str::to_owned)
            .collect();
        let body = self.subgraph(&p.body, &names, &inputs)?;
        let attributes = [
            graph("body", body),
            attribute("num_scan_inputs", p.scanned as i64),
        ];
        let results = self.emit_list("Scan", &operands[..given], &attributes, p.results.len());
        self.bind_results(&p.results, &results, &p.binds);
        Ok(results)
    }

    pub(super) fn call(&mut self, operands: &[&str], p: &Call) -> Result<Vec<String>> {
        let (symbols, extents) = (self.symbols.clone(), self.extents.clone());
        let results = self.inline(&p.body, &owned(operands), true)?;
        (self.symbols, self.extents) = (symbols, extents);
        self.bind_results(&p.results, &results, &p.binds);
        Ok(results)
    }

    /// Exports the nodes of a region among those of the graph around it. `bind` says whether its
    /// inputs bind the symbols of their types anew.
    pub(super) fn inline(
        &mut self,
        region: &Graph,
        names: &[String],
        bind: bool,
    ) -> Result<Vec<String>> {
        let inputs = region.inputs().iter().copied().zip(names.iter().cloned());
        let outer = std::mem::replace(&mut self.values, inputs.collect());
        let exported = match bind {
            true => self.region(region),
            false => self.region_nodes(region),
        };
        let inner = std::mem::replace(&mut self.values, outer);
        exported?;
        let named = |value| inner.get(value).cloned();
        let results = region.outputs().iter().map(|(_, value)| named(value));
        Ok(results
            .map(|name| name.unwrap_or_else(|| unreachable!("bug: an unmade output")))
            .collect())
    }

    /// A region as a graph of its own with the given inputs.
    fn subgraph(
        &mut self,
        region: &Graph,
        names: &[String],
        inputs: &[ValueInfoProto],
    ) -> Result<GraphProto> {
        let outer = std::mem::take(&mut self.nodes);
        let (symbols, extents) = (self.symbols.clone(), self.extents.clone());
        let results = self.inline(region, names, true);
        let mut outputs = Vec::new();
        for (result, kind) in results.iter().flatten().zip(region.output_types()) {
            let made = self.nodes.iter().any(|node| node.output.contains(result));
            let taken = outputs
                .iter()
                .any(|info: &ValueInfoProto| info.name() == result);
            let name = match made && !taken {
                true => result.clone(),
                // A value from outside, or one that is given out twice.
                false => self.emit("Identity", &[result], &[]),
            };
            outputs.push(write::value_info(&name, self.value_type(&open(&kind))?));
        }
        (self.symbols, self.extents) = (symbols, extents);
        let node = std::mem::replace(&mut self.nodes, outer);
        results?;
        let name = match region.name.is_empty() {
            true => "region".to_owned(),
            false => region.name.clone(),
        };
        Ok(GraphProto {
            name: Some(name),
            node,
            input: inputs.to_vec(),
            output: outputs,
            ..Default::default()
        })
    }

    /// Graph inputs for some inputs of a region.
    fn inputs_like(
        &mut self,
        region: &Graph,
        which: std::ops::Range<usize>,
    ) -> Result<Vec<ValueInfoProto>> {
        let mut infos = Vec::new();
        for &input in &region.inputs()[which] {
            let name = self.unique(region.input_name(input));
            infos.push(write::value_info(
                &name,
                self.value_type(&open(region.ty(input)))?,
            ));
        }
        Ok(infos)
    }

    /// Binds the symbols that an op takes from the extents of its results.
    fn bind_results(&mut self, kinds: &[ValueType], names: &[String], binds: &[Sym]) {
        for (kind, name) in kinds.iter().zip(names) {
            let Some(tensor) = kind.as_tensor() else {
                continue;
            };
            for (axis, dim) in tensor.dims.iter().enumerate() {
                if let Some(sym) = dim.as_sym().filter(|sym| binds.contains(sym)) {
                    self.bind_axis(sym, name, axis);
                }
            }
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn graph(name: &str, graph: GraphProto) -> AttributeProto {
    attribute(name, AttributeValue::Graph(graph))
}

/// The type with all extents that are not constant left open: those of a region may change from
/// one entry to the next, while a name would promise that they do not.
fn open(kind: &ValueType) -> ValueType {
    kind.map_dims(&|dim| match dim.as_const() {
        Some(_) => dim.clone(),
        None => dim.clone() * Dim::Const(2),
    })
}
