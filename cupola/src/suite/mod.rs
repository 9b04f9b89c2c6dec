//! The cases of the cross-vendor benchmark: kernels and models as graphs, with what they must compute and move.
//!
//! Nothing is read from files: weights and inputs are numbers without a short period, so that a result file says all that
//! is needed to measure the same again. Reading order: this file, `kernels`, `models`.

mod kernels;
mod models;

use crate::error::{Error, Result};
use cupola_ir::convert::{self, Lanes};
use cupola_ir::dtype::BlockFormat;
use cupola_ir::{DType, Graph, IrError, Tensor, TensorType, ValueId};

/// What a case measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Moving data: copies, transposes, casts, lookups.
    Movement,
    /// Functions of elements.
    Elementwise,
    /// Sums and norms over rows, columns and everything; sorting.
    Rows,
    /// Matrix products of f32.
    Product,
    /// Matrix products of f16.
    HalfProduct,
    /// Products with block-quantised weights.
    QuantisedProduct,
    /// Attention.
    Attention,
    /// Convolution.
    Convolution,
    /// Whole networks.
    Model,
}

impl Group {
    /// All groups in the order of reports.
    pub const ALL: [Group; 9] = [
        Group::Movement,
        Group::Elementwise,
        Group::Rows,
        Group::Product,
        Group::HalfProduct,
        Group::QuantisedProduct,
        Group::Attention,
        Group::Convolution,
        Group::Model,
    ];

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Group::Movement => "movement",
            Group::Elementwise => "elementwise",
            Group::Rows => "rows",
            Group::Product => "product",
            Group::HalfProduct => "half product",
            Group::QuantisedProduct => "quantised product",
            Group::Attention => "attention",
            Group::Convolution => "convolution",
            Group::Model => "model",
        }
    }
}

/// The arithmetic that bounds a case, for the choice of the peak it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Multiply-adds of f32.
    F32,
    /// Products of f16 with sums of f32, in matrix units where there are some.
    F16,
}

/// A case before its graph is made.
pub struct Case {
    /// Kernel or model with all that distinguishes it; results of one name are comparable.
    pub name: String,
    /// What it measures.
    pub group: Group,
    /// What its operations are.
    pub arithmetic: Arithmetic,
    /// Operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes of operands, weights and results, each once.
    pub bytes: f64,
    make: Make,
}

type Make = Box<dyn Fn(&mut Builder) -> Result<(), IrError> + Send + Sync>;

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Case({})", self.name)
    }
}

/// A graph and its inputs.
pub struct Built {
    /// The graph.
    pub graph: Graph,
    /// A value for each of its inputs.
    pub inputs: Vec<(String, Tensor)>,
}

impl Case {
    fn new(
        group: Group,
        name: String,
        flops: f64,
        bytes: f64,
        make: impl Fn(&mut Builder) -> Result<(), IrError> + Send + Sync + 'static,
    ) -> Case {
        let arithmetic = match group {
            Group::HalfProduct => Arithmetic::F16,
            _ => Arithmetic::F32,
        };
        Case {
            name,
            group,
            arithmetic,
            flops,
            bytes,
            make: Box::new(make),
        }
    }

    /// Makes the graph, its weights and its inputs.
    ///
    /// # Errors
    /// A graph that does not fit together, which is a mistake of this module.
    pub fn build(&self) -> Result<Built> {
        let mut builder = Builder {
            g: Graph::new(&self.name),
            inputs: vec![],
            seed: 0,
        };
        (self.make)(&mut builder).map_err(Error::from)?;
        Ok(Built {
            graph: builder.g,
            inputs: builder.inputs,
        })
    }
}

/// All cases, by group, each kind from small to large.
pub fn cases() -> Vec<Case> {
    let mut all = kernels::cases();
    all.extend(models::cases());
    all
}

/// A graph in the making, with values for its inputs.
struct Builder {
    g: Graph,
    inputs: Vec<(String, Tensor)>,
    seed: usize,
}

impl Builder {
    fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<ValueId, IrError> {
        let value = self.numbers(dtype, shape, 1.0)?;
        self.give(name, value)
    }

    /// Whole numbers below `limit`.
    fn ids(&mut self, name: &str, shape: &[usize], limit: usize) -> Result<ValueId, IrError> {
        let len: usize = shape.iter().product();
        let one = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) % limit;
        let values: Vec<i64> = (0..len).map(|i| one(i) as i64).collect();
        let value = Tensor::from_slice(shape, &values).ok_or_else(mismatch)?;
        self.give(name, value)
    }

    fn give(&mut self, name: &str, value: Tensor) -> Result<ValueId, IrError> {
        let ty = TensorType::new(value.dtype(), value.shape().iter().copied());
        self.inputs.push((name.to_string(), value));
        self.g.input(name, ty)
    }

    /// A constant of numbers between plus and minus `scale`.
    fn weight(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Result<ValueId, IrError> {
        let value = self.numbers(dtype, shape, scale)?;
        self.g.constant(value)
    }

    /// A matrix of blocks, `[rows, cols]` elements.
    fn blocks(
        &mut self,
        format: BlockFormat,
        rows: usize,
        cols: usize,
    ) -> Result<ValueId, IrError> {
        let size = rows * cols / format.block_len() * format.block_size();
        // No byte above 0x2f: read as f16 or as an exponent, every scale is a small number.
        let bytes: Vec<u8> = (0..size)
            .map(|i| ((i.wrapping_mul(2_654_435_761) >> 11) % 0x30) as u8)
            .collect();
        let value = Tensor::new(DType::Block(format), vec![rows, cols], bytes.into());
        self.g.constant(value.ok_or_else(mismatch)?)
    }

    fn numbers(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Result<Tensor, IrError> {
        self.seed += 1;
        let (len, seed) = (shape.iter().product(), self.seed * 104_729);
        let one = |i: usize| (((i * 7919 + seed) % 10_007) as f64 / 5003.5 - 1.0) * scale;
        let value = match dtype {
            DType::F32 => {
                let values: Vec<f32> = (0..len).map(|i| one(i) as f32).collect();
                Tensor::from_slice(shape, &values)
            }
            _ => {
                let values = (0..len).map(one).collect();
                convert::encode(&Lanes::F(values), dtype, shape, false)
            }
        };
        value.ok_or_else(mismatch)
    }

    fn output(&mut self, value: ValueId) {
        let name = format!("y{}", self.g.outputs().len());
        self.g.output(&name, value);
    }
}

fn mismatch() -> IrError {
    IrError::op("constant", "as many numbers as the shape has")
}
