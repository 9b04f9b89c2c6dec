//! Ops that move elements, reductions and the matrix product.

use cupola_ir::ops::{ArgReduce, Contract, Fold, Iota, Pad, Reduce, ReduceKind, Slice, Window};
use cupola_ir::{Class, CoreOp, DType, Dim, Graph, Node, Op, TensorType, ValueId};

use super::{Exporter, Result, unsupported};
use crate::write::attribute;

impl Exporter<'_> {
    /// The same elements under another shape.
    pub(super) fn reshape(&mut self, x: &str, dims: &[Dim]) -> Result<String> {
        if let Some(shape) = but_for_one(dims) {
            let shape = self.ints(&shape);
            return Ok(self.emit("Reshape", &[x, &shape], &[]));
        }
        let shape = self.shape(dims)?;
        // Without this a 0 would stand for the operand's extent.
        let constant = dims
            .iter()
            .all(|dim| dim.as_const().is_some_and(|size| size != 0));
        let attributes = [attribute("allowzero", 1)];
        Ok(self.emit(
            "Reshape",
            &[x, &shape],
            if constant { &[] } else { &attributes },
        ))
    }

    /// Reordered axes; nothing when they are in order.
    pub(super) fn permute(&mut self, x: &str, perm: &[usize]) -> String {
        if perm.iter().enumerate().all(|(axis, &from)| axis == from) {
            return x.to_owned();
        }
        let perm: Vec<i64> = perm.iter().map(|&axis| axis as i64).collect();
        self.emit("Transpose", &[x], &[attribute("perm", perm)])
    }

    /// Axes of extent 1 repeated.
    pub(super) fn expand(&mut self, x: &str, dims: &[Dim]) -> Result<String> {
        let shape = self.shape(dims)?;
        let expanded = self.emit("Expand", &[x, &shape], &[]);
        self.expanded.insert(expanded.clone(), x.to_owned());
        Ok(expanded)
    }

    /// Operands of an elementwise operator without the expansions that the operator does itself:
    /// those that leave another operand with the full extents.
    pub(super) fn unexpanded(&self, operands: &[&str]) -> Vec<String> {
        let source = |name: &str| {
            let mut found = self.expanded.get(name)?;
            while let Some(source) = self.expanded.get(found) {
                found = source;
            }
            Some(found)
        };
        // Of operands that are all expanded the first stays.
        let stays = operands
            .iter()
            .position(|name| source(name).is_none())
            .unwrap_or(0);
        let operands = operands.iter().enumerate();
        let names = operands.map(|(index, &name)| match source(name) {
            Some(source) if index != stays => source.clone(),
            _ => name.to_owned(),
        });
        names.collect()
    }

    /// Counts 0, 1, ... as a vector of `count` integers.
    pub(super) fn counting(&mut self, count: &Dim) -> Result<String> {
        let start = self.number(0.0, DType::I64)?;
        let step = self.number(1.0, DType::I64)?;
        let limit = self.extent_scalar(count)?;
        Ok(self.emit("Range", &[&start, &limit, &step], &[]))
    }

    /// [`Exporter::counting`] with axes of extent 1 around it, so that it lies along `axis` of `rank`.
    pub(super) fn counting_along(
        &mut self,
        count: &Dim,
        axis: usize,
        rank: usize,
    ) -> Result<String> {
        let counts = self.counting(count)?;
        let axes: Vec<i64> = (0..rank as i64)
            .filter(|&other| other != axis as i64)
            .collect();
        if axes.is_empty() {
            return Ok(counts);
        }
        let axes = self.ints(&axes);
        Ok(self.emit("Unsqueeze", &[&counts, &axes], &[]))
    }

    pub(super) fn iota(&mut self, p: &Iota) -> Result<String> {
        let counts = self.counting_along(&p.dims[p.axis], p.axis, p.dims.len())?;
        let counts = self.expand(&counts, &p.dims)?;
        self.cast(&counts, DType::I64, p.dtype)
    }

    pub(super) fn slice(&mut self, x: &str, from: &[Dim], p: &Slice) -> Result<String> {
        let whole =
            |axis: usize| p.starts[axis].is(0) && p.steps[axis] == 1 && p.dims[axis] == from[axis];
        let axes: Vec<usize> = (0..from.len()).filter(|&axis| !whole(axis)).collect();
        if axes.is_empty() {
            return Ok(x.to_owned());
        }
        let starts: Vec<Dim> = axes.iter().map(|&axis| p.starts[axis].clone()).collect();
        let end = |&axis: &usize| {
            p.starts[axis].clone() + p.dims[axis].clone() * Dim::Const(p.steps[axis])
        };
        let ends: Vec<Dim> = axes.iter().map(end).collect();
        let steps: Vec<i64> = axes.iter().map(|&axis| p.steps[axis]).collect();
        let starts = self.shape(&starts)?;
        let ends = self.slice_ends(&ends, &steps)?;
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        let (axes, steps) = (self.ints(&axes), self.ints(&steps));
        Ok(self.emit("Slice", &[x, &starts, &ends, &axes, &steps], &[]))
    }

    /// A slice that goes backwards ends before index 0; as a number from the end that must lie
    /// before everything.
    fn slice_ends(&mut self, ends: &[Dim], steps: &[i64]) -> Result<String> {
        const BEFORE_ALL: i64 = i64::MIN + 1;
        let back = steps.iter().any(|&step| step < 0);
        if let Some(known) = ends.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            let end = |end| if end < 0 { BEFORE_ALL } else { end };
            let ends: Vec<i64> = known.into_iter().map(end).collect();
            return Ok(self.ints(&ends));
        }
        let ends = self.shape(ends)?;
        if !back {
            return Ok(ends);
        }
        let (zero, before) = (self.ints(&[0]), self.ints(&[BEFORE_ALL]));
        let negative = self.emit("Less", &[&ends, &zero], &[]);
        Ok(self.emit("Where", &[&negative, &before, &ends], &[]))
    }

    pub(super) fn pad(&mut self, operands: &[&str], p: &Pad) -> Result<String> {
        let amounts = self.shape(&[&p.low[..], &p.high].concat())?;
        Ok(self.emit("Pad", &[operands[0], &amounts, operands[1]], &[]))
    }

    /// Positions of the elements of windows: `[windows, size]`.
    fn window_positions(&mut self, count: &Dim, p: &Window, k: usize) -> Result<String> {
        let windows = self.counting_along(count, 0, 2)?;
        let stride = self.ints(&[p.strides[k]]);
        let windows = self.emit("Mul", &[&windows, &stride], &[]);
        let inner = self.counting_along(&p.sizes[k], 1, 2)?;
        let dilation = self.ints(&[p.dilations[k]]);
        let inner = self.emit("Mul", &[&inner, &dilation], &[]);
        Ok(self.emit("Add", &[&windows, &inner], &[]))
    }

    /// Each windowed axis is gathered into windows and elements; the elements' axes go to the end.
    pub(super) fn window(&mut self, x: &str, dims: &[Dim], p: &Window) -> Result<String> {
        let rank = dims.len();
        let mut x = x.to_owned();
        for (k, &axis) in p.axes.iter().enumerate() {
            let count = Window::count(&dims[axis], &p.sizes[k], p.strides[k], p.dilations[k]);
            let positions = self.window_positions(&count, p, k)?;
            x = self.emit(
                "Gather",
                &[&x, &positions],
                &[attribute("axis", axis as i64)],
            );
            // The new axis stands behind `axis`; behind it are the other axes and earlier sizes.
            let mut perm: Vec<usize> = (0..rank + k + 1).collect();
            perm.remove(axis + 1);
            perm.push(axis + 1);
            x = self.permute(&x, &perm);
        }
        Ok(x)
    }

    /// The windowed axes one after the other, the last first: its elements are added into zeros at
    /// their positions.
    pub(super) fn fold(&mut self, x: &str, kind: &TensorType, p: &Fold) -> Result<String> {
        let window = Window {
            axes: p.axes.clone(),
            sizes: p.sizes.clone(),
            strides: p.strides.clone(),
            dilations: p.dilations.clone(),
        };
        let zero = self.number(0.0, kind.dtype)?;
        let mut dims = kind.dims.clone();
        let mut x = x.to_owned();
        for (k, &axis) in p.axes.iter().enumerate().rev() {
            let last = dims.len() - 1;
            let others: Vec<usize> = (0..last).filter(|&other| other != axis).collect();
            x = self.permute(&x, &[&[axis, last][..], &others].concat());
            let other_dims: Vec<Dim> = others.iter().map(|&other| dims[other].clone()).collect();
            let added = dims[axis].clone() * dims[last].clone();
            x = self.reshape(
                &x,
                &[std::slice::from_ref(&added), &other_dims[..]].concat(),
            )?;
            let positions = self.window_positions(&dims[axis].clone(), &window, k)?;
            let positions = self.reshape(&positions, &[added, Dim::ONE])?;
            let zeros = self.expand(&zero, &[&[p.dims[axis].clone()], &other_dims[..]].concat())?;
            let add = [attribute("reduction", "add")];
            x = self.emit("ScatterND", &[&zeros, &positions, &x], &add);
            dims.pop();
            dims[axis] = p.dims[axis].clone();
            let mut perm: Vec<usize> = (1..dims.len()).collect();
            perm.insert(axis, 0);
            x = self.permute(&x, &perm);
        }
        Ok(x)
    }

    pub(super) fn reduce(&mut self, x: &str, dtype: DType, p: &Reduce) -> Result<String> {
        if p.axes.is_empty() {
            return Ok(x.to_owned());
        }
        let op = match p.kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Prod => "ReduceProd",
            ReduceKind::Max => "ReduceMax",
            ReduceKind::Min => "ReduceMin",
        };
        let order = matches!(p.kind, ReduceKind::Max | ReduceKind::Min);
        // 16-bit integers, and sums of small ones, have no reductions in ONNX; float sums keep their
        // accumulator where it is wider.
        let inner = match dtype.class() {
            Class::Bool => DType::U8,
            Class::Signed | Class::Unsigned if order && dtype.bits() == 8 => dtype,
            Class::Signed | Class::Unsigned if dtype.bits() < 32 => DType::I32,
            Class::Float if !order && p.accum.bits() > dtype.bits() => p.accum,
            _ => dtype,
        };
        let x = self.cast(x, dtype, inner)?;
        let axes: Vec<i64> = p.axes.iter().map(|&axis| axis as i64).collect();
        let axes = self.ints(&axes);
        let mut reduced = self.emit(op, &[&x, &axes], &[attribute("keepdims", 0)]);
        if order
            && inner == DType::I32
            && let Some((low, high)) = dtype.int_range()
        {
            // Over nothing the result is the limit of the type.
            let (op, limit) = if p.kind == ReduceKind::Max {
                ("Max", low)
            } else {
                ("Min", high)
            };
            let limit = self.number(limit as f64, inner)?;
            reduced = self.emit(op, &[&reduced, &limit], &[]);
        }
        self.cast(&reduced, inner, dtype)
    }

    /// A reduction of the elements of windows over the last axes of `[batch, channels, spatial..]`
    /// is a pooling operator.
    pub(super) fn pool(&mut self, graph: &Graph, x: ValueId, p: &Reduce) -> Result<Option<String>> {
        let Op::Core(CoreOp::Window(window)) = graph.op_of(x) else {
            return Ok(None);
        };
        let source = graph.def(x).operands[0];
        let (rank, dtype) = (graph.rank(source), graph.dtype(source));
        let spatial = rank >= 3 && window.axes.iter().copied().eq(2..rank);
        let whole = p.axes.iter().copied().eq(rank..2 * rank - 2);
        let float = matches!(dtype, DType::F16 | DType::F32 | DType::F64);
        let sizes: Option<Vec<i64>> = window.sizes.iter().map(Dim::as_const).collect();
        let (true, Some(sizes)) = (spatial && whole && float, sizes) else {
            return Ok(None);
        };
        let source = self.value(source).to_owned();
        let attributes = [
            attribute("kernel_shape", sizes.clone()),
            attribute("strides", window.strides.clone()),
            attribute("dilations", window.dilations.clone()),
        ];
        match p.kind {
            ReduceKind::Max => Ok(Some(self.emit("MaxPool", &[&source], &attributes))),
            ReduceKind::Sum => {
                let mean = self.emit("AveragePool", &[&source], &attributes);
                let count = self.number(sizes.iter().product::<i64>() as f64, dtype)?;
                Ok(Some(self.emit("Mul", &[&mean, &count], &[])))
            }
            ReduceKind::Prod | ReduceKind::Min => Ok(None),
        }
    }

    pub(super) fn arg_reduce(&mut self, x: &str, dtype: DType, p: &ArgReduce) -> Result<String> {
        let op = match p.kind {
            ReduceKind::Max => "ArgMax",
            ReduceKind::Min => "ArgMin",
            ReduceKind::Sum | ReduceKind::Prod => return Err(unsupported("arg_reduce of a sum")),
        };
        let inner = if dtype == DType::Bool {
            DType::I32
        } else {
            dtype
        };
        let x = self.cast(x, dtype, inner)?;
        let attributes = [
            attribute("axis", p.axis as i64),
            attribute("keepdims", 0),
            attribute("select_last_index", i64::from(p.last)),
        ];
        Ok(self.emit(op, &[&x], &attributes))
    }

    /// Brings the operands to `[batch.., rows, inner]` and `[batch.., inner, cols]`, where rows, inner
    /// and cols are one axis each, for `MatMul`.
    pub(super) fn contract(
        &mut self,
        operands: &[&str],
        lhs: &TensorType,
        rhs: &TensorType,
        p: &Contract,
        graph: &Graph,
        node: &Node,
    ) -> Result<String> {
        if rhs.dtype.class() == Class::Block {
            return Err(unsupported(format!("a product with {}", rhs.dtype)));
        }
        let lhs_free = Contract::free(lhs.rank(), &p.lhs_batch, &p.lhs_contract);
        let rhs_free = Contract::free(rhs.rank(), &p.rhs_batch, &p.rhs_contract);
        let pick = |kind: &TensorType, axes: &[usize]| -> Vec<Dim> {
            axes.iter().map(|&axis| kind.dims[axis].clone()).collect()
        };
        let batch = pick(lhs, &p.lhs_batch);
        let small_ints = |dtype: DType| dtype.is_int() && dtype.bits() == 8;
        let integer = small_ints(lhs.dtype) && small_ints(rhs.dtype) && p.accum == DType::I32;
        let inner = match p.out.class() {
            _ if integer => None,
            Class::Float if p.out.bits() > lhs.dtype.bits() => Some(p.out),
            Class::Float => Some(lhs.dtype),
            _ => Some(p.accum),
        };
        // Several matrices by one: `MatMul` knows that itself.
        let is_several = batch.is_empty()
            && lhs_free.len() > 1
            && (p.lhs_contract.len(), rhs_free.len()) == (1, 1);
        let mut sides = Vec::new();
        let lhs_order = [
            p.lhs_batch.clone(),
            lhs_free.clone(),
            p.lhs_contract.clone(),
        ];
        let rhs_order = [
            p.rhs_batch.clone(),
            p.rhs_contract.clone(),
            rhs_free.clone(),
        ];
        for (operand, kind, order) in [(operands[0], lhs, lhs_order), (operands[1], rhs, rhs_order)]
        {
            let mut side = operand.to_owned();
            if let Some(inner) = inner {
                side = self.cast(&side, kind.dtype, inner)?;
            }
            side = self.permute(&side, &order.concat());
            if !is_several && (order[1].len() != 1 || order[2].len() != 1) {
                let [_, second, third] = &order;
                let flat = |axes: &[usize]| Dim::product(&pick(kind, axes));
                side = self.reshape(&side, &[&batch[..], &[flat(second), flat(third)]].concat())?;
            }
            sides.push(side);
        }
        let op = if integer { "MatMulInteger" } else { "MatMul" };
        let mut product = self.emit(op, &[&sides[0], &sides[1]], &[]);
        if !is_several && (lhs_free.len() != 1 || rhs_free.len() != 1) {
            product = self.reshape(&product, &graph.dims(node.results[0]))?;
        }
        self.cast(&product, inner.unwrap_or(DType::I32), p.out)
    }
}

/// Extents with -1 for the only one that is not known, where the others leave no doubt what that is.
fn but_for_one(dims: &[Dim]) -> Option<Vec<i64>> {
    let open = dims.iter().filter(|dim| dim.as_const().is_none()).count();
    let is_clear = open == 1 && dims.iter().all(|dim| !dim.is(0));
    is_clear.then(|| {
        let each = dims.iter().map(|dim| dim.as_const().unwrap_or(-1));
        each.collect()
    })
}
