//! A model with its loss, from a configuration and the data that it is for.

use super::config::{Config, wrong};
use super::layers::Layers;
use super::recipe::{Loss, Target};
use crate::error::Result;
use crate::model::Model;
use cupola_ir::ops::{ArgReduce, ReduceKind};
use cupola_ir::{CompositeOp, DType, Dim, Op, Tensor, TensorType, ValueId};
use cupola_train::Net;
use cupola_train::data::{Batch, Column, Dataset};
use std::path::Path;
use std::sync::Arc;

/// Output of evaluations: the likeliest classes, or the numbers that are predicted.
pub const SAID: &str = "said";

/// A model with a loss.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// The model.
    pub net: Net,
    /// Its loss.
    pub loss: ValueId,
    /// Name of the input that takes what is to be said.
    pub target: String,
    /// What targets are.
    pub kind: Target,
    /// The likeliest classes (i64), or the scores themselves.
    pub said: ValueId,
    /// The class that counts for nothing, where targets are classes.
    pub ignored: Option<i64>,
}

/// Builds the model that a configuration describes for samples like those of `data`.
///
/// # Errors
/// Layers that do not fit each other, the data or the loss.
pub fn assemble(config: &Config, data: &Dataset) -> Result<Assembled> {
    let loss = Loss::parse(&config.loss)?;
    let columns = |name: &str| {
        let column = data.column(name);
        column.ok_or_else(|| wrong(format!("the data have no column '{name}'")))
    };
    let y_type = target_type(columns("y")?, loss.target())?;
    if let Some(path) = &config.model.file {
        return of_file(path, config, y_type, &loss, data);
    }
    let mut net = config.net();
    let mut x_type = input_type(columns("x")?, &config.model.input)?;
    let mut y_type = y_type;
    for ty in [&mut x_type, &mut y_type] {
        if ty.dtype.is_float() {
            ty.dtype = net.dtype();
        }
    }
    let x = net.input("x", x_type.dtype, x_type.dims)?;
    let words = [
        ("tokens", data.token_kinds),
        ("classes", data.classes.len()),
        ("targets", target_width(&y_type)),
    ];
    let words: Vec<(&str, usize)> = words.into_iter().filter(|w| w.1 > 0).collect();
    let y = Layers::new(&mut net, &words).all(&config.model.layers, x)?;
    net.output("y", y);
    let target = net.input("target", y_type.dtype, y_type.dims)?;
    with_loss(net, y, target, &loss, data)
}

/// A model file with a loss; its named float constants are trained.
fn of_file(
    path: &Path,
    config: &Config,
    mut target: TensorType,
    loss: &Loss,
    data: &Dataset,
) -> Result<Assembled> {
    let graph = Model::open(path)?.graph()?;
    let inputs = graph.inputs().iter();
    let batch = inputs.filter_map(|v| graph.ty(*v).as_tensor()?.dims.first().cloned());
    let batch = batch.collect::<Vec<_>>();
    let Some(batch) = batch.first() else {
        let what = format!(
            "{}: no input with samples along its first axis",
            path.display()
        );
        return Err(wrong(what));
    };
    let mut net = Net::from_graph(Arc::unwrap_or_clone(graph), &Net::is_weight)?;
    let mut y = match &config.model.output {
        Some(name) => net.result(Some(name))?,
        None => usual_output(
            &net,
            target.rank() + usize::from(loss.target() == Target::Class),
        )?,
    };
    // The loss of scores is exact where that of their probabilities is not.
    let node = net.graph.def(y);
    if let (Op::Composite(CompositeOp::Softmax(p)), Target::Class) = (&node.op, loss.target())
        && p.axis + 1 == net.graph.rank(y)
    {
        y = node.operands[0];
    }
    if let Some(first) = target.dims.first_mut() {
        first.clone_from(batch);
    }
    let target = net.input("target", target.dtype, target.dims)?;
    with_loss(net, y, target, loss, data)
}

/// The first output that a loss could be taken of: floats of this rank, or else the first.
fn usual_output(net: &Net, rank: usize) -> Result<ValueId> {
    let mut all = net.outputs().iter().map(|(_, v)| *v);
    let fits = |v: &ValueId| {
        let ty = net.graph.ty(*v).as_tensor();
        ty.is_some_and(|t| t.dtype.is_float() && t.rank() == rank)
    };
    match all.find(fits) {
        Some(y) => Ok(y),
        None => Ok(net.result(None)?),
    }
}

/// Appends the loss of scores.
fn with_loss(
    mut net: Net,
    y: ValueId,
    target: ValueId,
    loss: &Loss,
    data: &Dataset,
) -> Result<Assembled> {
    let (mut scores, mut wanted) = (y, target);
    let types = [net.graph.tensor(y), net.graph.tensor(target)];
    let [given, asked] = &types;
    let unfit = || {
        let what = format!("the last layer gives {given}, the loss compares it with {asked}");
        wrong(what)
    };
    match loss.target() {
        Target::Class => {
            if given.rank() != asked.rank() + 1 || given.dims[..asked.rank()] != asked.dims[..] {
                return Err(unfit());
            }
            let kinds = match data.column("y") {
                Some(Column::Windows { .. }) => data.token_kinds as i64,
                _ => data.classes.len() as i64,
            };
            let classes = given.dims.last().and_then(Dim::as_const);
            if let Some(classes) = classes.filter(|c| *c < kinds) {
                let what = format!("the last layer gives {classes} scores for {kinds} classes");
                return Err(wrong(what));
            }
            check_labels(data, classes.unwrap_or(kinds), loss.ignored()?)?;
            // Every step of a sequence is a row of its own.
            if asked.rank() > 1 {
                scores = net.join_steps(y)?;
                wanted = net.join_steps(target)?;
            }
        }
        Target::Numbers if given.dims != asked.dims => return Err(unfit()),
        Target::Numbers => {}
    }
    let value = loss.append(&mut net, scores, wanted)?;
    let (said, ignored) = match loss.target() {
        Target::Numbers => (y, None),
        Target::Class => {
            let best = ArgReduce {
                kind: ReduceKind::Max,
                axis: given.rank() - 1,
                last: false,
            };
            (net.graph.one(best, &[y])?, Some(loss.ignored()?))
        }
    };
    Ok(Assembled {
        target: net.graph.input_name(target).to_string(),
        kind: loss.target(),
        net,
        loss: value,
        said,
        ignored,
    })
}

/// Refuses targets that are no class of the scores, and not left out either.
fn check_labels(data: &Dataset, classes: i64, ignored: i64) -> Result<()> {
    let Some(Column::Labels { values, .. }) = data.column("y") else {
        return Ok(());
    };
    let mut each = values.iter();
    match each.find(|v| **v != ignored && !(0..classes).contains(*v)) {
        Some(label) => {
            let what = format!(
                "the data have a target {label}, which is none of the classes 0 to {} and not what the loss ignores ({ignored})",
                classes - 1
            );
            Err(wrong(what))
        }
        None => Ok(()),
    }
}

/// `[batch, extents..]` of an input, with the extents that are asked for or the data's own.
fn input_type(column: &Column, asked: &[usize]) -> Result<TensorType> {
    let batch = Dim::sym("batch");
    let shaped = |dtype: DType, own: &[usize]| -> Result<TensorType> {
        let extents = if asked.is_empty() { own } else { asked };
        if extents.iter().product::<usize>() != own.iter().product::<usize>() {
            let what = format!(
                "model.input is {extents:?}, but samples are {}",
                column.describe()
            );
            return Err(wrong(what));
        }
        let extents = extents.iter().map(|e| Dim::from(*e));
        Ok(TensorType::new(
            dtype,
            std::iter::once(batch.clone()).chain(extents),
        ))
    };
    match column {
        Column::Pixels { shape, .. } | Column::Floats { shape, .. } => shaped(DType::F32, shape),
        Column::Labels { shape, .. } => shaped(DType::I64, shape),
        Column::Windows { len, .. } => {
            Ok(TensorType::new(DType::I64, [batch.clone(), (*len).into()]))
        }
        Column::Sequences { padding, .. } => {
            let steps = padding.exact.map_or(Dim::sym("steps"), Dim::from);
            Ok(TensorType::new(DType::I64, [batch.clone(), steps]))
        }
    }
}

/// `[batch, extents..]` of a target.
fn target_type(column: &Column, kind: Target) -> Result<TensorType> {
    let mut ty = input_type(column, &[])?;
    let is_numbers = kind == Target::Numbers;
    if !is_numbers && ty.dtype.is_float() {
        let what = "the loss takes classes, but targets are numbers (data.class_target makes classes of them)";
        return Err(wrong(what));
    }
    if is_numbers {
        ty.dtype = DType::F32;
        // One number for each sample stands in a column.
        if ty.rank() == 1 {
            ty.dims.push(Dim::from(1usize));
        }
    }
    Ok(ty)
}

fn target_width(ty: &TensorType) -> usize {
    match ty.dtype.is_float() {
        true => ty.dims.last().and_then(Dim::as_const).unwrap_or(0) as usize,
        false => 0,
    }
}

/// The columns of a batch as the inputs of a graph: `x` for all inputs but the target, `y` for that, in the graph's types
/// and extents.
///
/// # Errors
/// A column that does not fit an input.
pub fn feed(
    batch: &Batch,
    inputs: &[(String, TensorType)],
    target: &str,
) -> Result<Vec<(String, Tensor)>> {
    let mut fed = vec![];
    for (name, ty) in inputs {
        let column = match name == target {
            true => batch.column("y"),
            false => batch.column(name).or_else(|| batch.column("x")),
        };
        let Some(column) = column else {
            return Err(wrong(format!("the data have nothing for input '{name}'")));
        };
        fed.push((name.clone(), fitted(name, column, ty)?));
    }
    Ok(fed)
}

/// A tensor in the type and extents of an input; extents that are no numbers are the tensor's.
fn fitted(name: &str, tensor: &Tensor, ty: &TensorType) -> Result<Tensor> {
    let unfit = || {
        let what = format!(
            "samples of {} do not fit input '{name}' of {ty}",
            tensor.ty()
        );
        wrong(what)
    };
    let cast = match tensor.dtype() == ty.dtype {
        true => tensor.clone(),
        false => cupola_ir::convert::cast(tensor, ty.dtype, true).map_err(|_| unfit())?,
    };
    if tensor.shape().len() == ty.rank() {
        return Ok(cast);
    }
    let rest: Option<Vec<usize>> = (ty.dims.iter().skip(1))
        .map(|d| d.as_const().and_then(|c| usize::try_from(c).ok()))
        .collect();
    let batch = tensor.shape().first().copied().unwrap_or(0);
    let shape = [vec![batch], rest.ok_or_else(unfit)?].concat();
    cast.reshaped(shape).ok_or_else(unfit)
}
