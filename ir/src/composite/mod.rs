//! Composites: named ops with attributes and a mandatory decomposition into core ops.
//!
//! Replacing a composite by its decomposition never changes meaning beyond rounding. Backends claim the composites
//! they have a library kernel for; the rest are inlined and fused. One file per composite; its result types are those
//! of its decomposition unless it overrides [`CompositeDef::infer`].

pub mod activation;
pub mod attention;
pub mod attention_gradient;
pub mod conv;
pub mod conv_gradient;
mod gradient;
pub mod integer;
pub mod loss;
pub mod norm;
pub mod paged_attention;
pub mod recurrent;
pub mod rope;
pub mod softmax;

pub use activation::*;
pub use attention::*;
pub use attention_gradient::*;
pub use conv::*;
pub use conv_gradient::*;
pub use integer::*;
pub use loss::*;
pub use norm::*;
pub use paged_attention::*;
pub use recurrent::*;
pub use rope::*;
pub use softmax::*;

use crate::attr::op_family;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::tensor::Value;
use crate::tensor_type::ValueType;
use std::ops::RangeInclusive;

/// Contract of a composite's payload.
pub trait CompositeDef {
    /// How many operands it takes; all are tensors.
    fn arity(&self) -> RangeInclusive<usize>;

    /// Appends the decomposition to the graph. There are as many operands as [`CompositeDef::arity`] says.
    ///
    /// # Errors
    /// What is wrong with the operands or attributes.
    fn decompose(&self, graph: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>>;

    /// The same for devices that compute every element of a joined value by itself
    /// ([`crate::target::Target::joins_in_turn`] is false): where there is such a form, without joins, so that one kernel
    /// computes it.
    ///
    /// # Errors
    /// As [`CompositeDef::decompose`].
    fn decompose_without_joins(
        &self,
        graph: &mut Graph,
        operands: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        self.decompose(graph, operands)
    }

    /// Result types for operand types; `None` to take them from the decomposition.
    fn infer(&self, _operands: &[&ValueType]) -> Option<Result<Vec<ValueType>, String>> {
        None
    }

    /// Appends the operands' gradients for the cotangents of the results (of the same types; `None` where nothing depends
    /// on a result), where differentiating the decomposition would be unstable or wasteful: `None` to do that. Only the
    /// `wanted` operands' gradients are used; one that is `None` is zero. The composite's own `results` may be used.
    fn vjp(
        &self,
        _graph: &mut Graph,
        _operands: &[ValueId],
        _results: &[ValueId],
        _cotangents: &[Option<ValueId>],
        _wanted: &[bool],
    ) -> Option<Result<Vec<Option<ValueId>>>> {
        None
    }

    /// The results computed directly, where the decomposition would be too large to interpret (a convolution's
    /// windows); tests hold it equal to the decomposition. `None` to interpret the decomposition.
    fn eval(&self, _operands: &[&Value]) -> Option<Result<Vec<Value>, String>> {
        None
    }
}

op_family! {
    /// A composite op.
    CompositeOp {
        /// Exponentials normalised along an axis.
        Softmax = "softmax",
        /// Normalisation over trailing axes by mean and variance.
        LayerNorm = "layer_norm",
        /// Normalisation over trailing axes by root mean square.
        RmsNorm = "rms_norm",
        /// Gaussian error linear unit.
        Gelu = "gelu",
        /// A value times the sigmoid of its multiple.
        Swish = "swish",
        /// A value gated by the swish of another.
        Swiglu = "swiglu",
        /// Rotary position embedding.
        Rope = "rope",
        /// Scaled dot-product attention.
        Attention = "attention",
        /// The gradient of attention.
        AttentionGradient = "attention_gradient",
        /// Attention of single queries over keys and values in pages.
        PagedAttention = "paged_attention",
        /// Convolution.
        Conv = "conv",
        /// Convolution of channels-last images.
        ConvChannelsLast = "conv_channels_last",
        /// Transposed convolution.
        ConvTranspose = "conv_transpose",
        /// Gradient of a convolution's weights.
        ConvWeightGradient = "conv_weight_gradient",
        /// Cross-entropy of scores and classes.
        CrossEntropy = "cross_entropy",
        /// A recurrent layer.
        Recurrent = "recurrent",
        /// Product of 8-bit integers with zero points.
        IntegerProduct = "integer_product",
        /// Convolution of 8-bit integers with zero points.
        IntegerConv = "integer_conv",
        /// Rounding to 8-bit integers over the range of a tensor.
        DynamicQuantize = "dynamic_quantize",
    }
}

impl CompositeOp {
    /// The payload as its contract.
    pub fn def(&self) -> &dyn CompositeDef {
        match self {
            CompositeOp::Softmax(p) => p,
            CompositeOp::LayerNorm(p) => p,
            CompositeOp::RmsNorm(p) => p,
            CompositeOp::Gelu(p) => p,
            CompositeOp::Swish(p) => p,
            CompositeOp::Swiglu(p) => p,
            CompositeOp::Rope(p) => p,
            CompositeOp::Attention(p) => p,
            CompositeOp::AttentionGradient(p) => p,
            CompositeOp::PagedAttention(p) => p,
            CompositeOp::Conv(p) => p,
            CompositeOp::ConvChannelsLast(p) => p,
            CompositeOp::ConvTranspose(p) => p,
            CompositeOp::ConvWeightGradient(p) => p,
            CompositeOp::CrossEntropy(p) => p,
            CompositeOp::Recurrent(p) => p,
            CompositeOp::IntegerProduct(p) => p,
            CompositeOp::IntegerConv(p) => p,
            CompositeOp::DynamicQuantize(p) => p,
        }
    }

    /// Result types for operand types: the composite's own rule, or those of its decomposition.
    ///
    /// # Errors
    /// What is wrong with the operands or attributes.
    pub fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        self.check_operands(operands)?;
        if let Some(own) = self.def().infer(operands) {
            return own;
        }
        let (graph, results) = self.expand(operands).map_err(|e| e.to_string())?;
        Ok(results.iter().map(|r| graph.ty(*r).clone()).collect())
    }

    fn check_operands(&self, operands: &[&ValueType]) -> Result<(), String> {
        let arity = self.def().arity();
        if !arity.contains(&operands.len()) {
            let (least, most) = (arity.start(), arity.end());
            let takes = match least == most {
                true => least.to_string(),
                false => format!("{least} to {most}"),
            };
            return Err(format!("takes {takes} operands, not {}", operands.len()));
        }
        match operands.iter().find(|t| t.as_tensor().is_none()) {
            Some(t) => Err(format!("operand of type {t} is no tensor")),
            None => Ok(()),
        }
    }

    /// The decomposition as a graph of its own whose inputs are the operands.
    ///
    /// # Errors
    /// What is wrong with the operands or attributes.
    pub fn expand(&self, operands: &[&ValueType]) -> Result<(Graph, Vec<ValueId>)> {
        self.check_operands(operands)
            .map_err(|what| IrError::op(format!("composite.{}", self.name()), what))?;
        let mut graph = Graph::new(self.name());
        let inputs: Vec<ValueId> = (operands.iter().enumerate())
            .map(|(i, t)| graph.input(&format!("x{i}"), (*t).clone()))
            .collect::<Result<_>>()?;
        let results = self.def().decompose(&mut graph, &inputs)?;
        for (i, r) in results.iter().enumerate() {
            graph.output(&format!("y{i}"), *r);
        }
        Ok((graph, results))
    }
}
