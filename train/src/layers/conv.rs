//! Convolutions over one, two or three spatial axes.

use super::{known, per_axis};
use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::Net;
use cupola_ir::{Dim, Op, ValueId, composite};

/// Settings of [`Net::conv`]; a list has one entry per spatial axis, or one for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Channels of the result.
    pub outputs: usize,
    /// Extents of the kernel, one per spatial axis.
    pub kernel: Vec<usize>,
    /// Distance of windows.
    pub stride: Vec<usize>,
    /// Zeros on both sides.
    pub padding: Vec<usize>,
    /// Distance of elements in a window.
    pub dilation: Vec<usize>,
    /// Groups of channels.
    pub groups: usize,
    /// Whether a number per channel is added.
    pub bias: bool,
}

impl Conv {
    /// Stride 1, no padding, one group, with bias.
    pub fn new(outputs: usize, kernel: impl Into<Vec<usize>>) -> Conv {
        Conv {
            outputs,
            kernel: kernel.into(),
            stride: vec![1],
            padding: vec![0],
            dilation: vec![1],
            groups: 1,
            bias: true,
        }
    }

    /// The same with another stride.
    pub fn stride(self, stride: usize) -> Conv {
        let stride = vec![stride];
        Conv { stride, ..self }
    }

    /// The same with other padding.
    pub fn padding(self, padding: usize) -> Conv {
        let padding = vec![padding];
        Conv { padding, ..self }
    }
}

/// Settings of [`Net::conv_transpose`]; a list has one entry per spatial axis, or one for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTranspose {
    /// As for a convolution.
    pub conv: Conv,
    /// Elements added after each spatial axis of the result.
    pub output_padding: Vec<usize>,
}

impl ConvTranspose {
    /// Stride 1, no padding, one group, with bias.
    pub fn new(outputs: usize, kernel: impl Into<Vec<usize>>) -> ConvTranspose {
        ConvTranspose {
            conv: Conv::new(outputs, kernel),
            output_padding: vec![0],
        }
    }
}

/// Settings with one entry per spatial axis.
struct Axes {
    stride: Vec<i64>,
    padding: Vec<Dim>,
    dilation: Vec<i64>,
}

fn axes(net: &Net, name: &str, x: ValueId, c: &Conv) -> Result<Axes> {
    let n = c.kernel.len();
    if net.graph.rank(x) != n + 2 {
        let ty = net.graph.ty(x);
        let what = format!("takes [batch, channels, {n} spatial axes], not {ty}");
        return Err(TrainError::layer(name, what));
    }
    let numbers = |what, values: &[usize]| -> Result<Vec<i64>> {
        let all = per_axis(name, what, values, n)?;
        Ok(all.into_iter().map(|v| v as i64).collect())
    };
    let (stride, dilation) = (
        numbers("stride", &c.stride)?,
        numbers("dilation", &c.dilation)?,
    );
    let positive = stride.iter().chain(&dilation).all(|v| *v > 0);
    if !positive || c.kernel.contains(&0) || c.groups == 0 {
        let what = "kernel, stride, dilation and groups are positive";
        return Err(TrainError::layer(name, what));
    }
    let padding = numbers("padding", &c.padding)?.into_iter();
    Ok(Axes {
        stride,
        padding: padding.map(Dim::from).collect(),
        dilation,
    })
}

/// Channels of the input, which the groups divide, as they do the outputs.
fn grouped_channels(net: &Net, name: &str, x: ValueId, c: &Conv) -> Result<usize> {
    let channels = known(&net.graph, name, x, 1)?;
    let divides = |n: usize| n.is_multiple_of(c.groups);
    if divides(channels) && divides(c.outputs) {
        return Ok(channels);
    }
    let what = format!(
        "{} groups of {channels} and {} channels",
        c.groups, c.outputs
    );
    Err(TrainError::layer(name, what))
}

impl Net {
    /// Convolution of `x: [batch, channels, spatial..]`. Parameters `weight: [outputs, channels / groups, kernel..]` and
    /// `bias: [outputs]`.
    ///
    /// # Errors
    /// Another number of axes than the kernel's, channels that groups do not divide.
    pub fn conv(&mut self, name: &str, x: ValueId, c: &Conv) -> Result<ValueId> {
        let a = axes(self, name, x, c)?;
        let channels = grouped_channels(self, name, x, c)?;
        let inner = channels / c.groups;
        let shape = [&[c.outputs, inner], &c.kernel[..]].concat();
        let init = Init::fan_in(shape[1..].iter().product());
        let w = self.parameter(&format!("{name}.weight"), &shape, init.clone())?;
        let op = composite::Conv {
            strides: a.stride,
            dilations: a.dilation,
            pads_low: a.padding.clone(),
            pads_high: a.padding,
            groups: c.groups,
        };
        let y = self.graph.one(Op::Composite(op.into()), &[x, w])?;
        self.channel_bias(name, y, c, init)
    }

    /// Transposed convolution of `x: [batch, channels, spatial..]`: the gradient of a convolution with the same settings.
    /// Parameters `weight: [channels, outputs / groups, kernel..]` and `bias: [outputs]`.
    ///
    /// # Errors
    /// As [`Net::conv`].
    pub fn conv_transpose(&mut self, name: &str, x: ValueId, t: &ConvTranspose) -> Result<ValueId> {
        let c = &t.conv;
        let a = axes(self, name, x, c)?;
        let channels = grouped_channels(self, name, x, c)?;
        let extra = per_axis(name, "output padding", &t.output_padding, c.kernel.len())?;
        let shape = [&[channels, c.outputs / c.groups], &c.kernel[..]].concat();
        // PyTorch counts the inputs of one output from the second axis, as it stands.
        let init = Init::fan_in(shape[1..].iter().product());
        let w = self.parameter(&format!("{name}.weight"), &shape, init.clone())?;
        let spatial = (0..c.kernel.len()).map(|i| {
            let n = self.graph.dim(x, 2 + i) - Dim::ONE;
            let span = Dim::from(a.dilation[i]) * Dim::from(c.kernel[i] - 1);
            let full = n * Dim::from(a.stride[i]) + span + Dim::ONE + Dim::from(extra[i]);
            full - Dim::from(2usize) * a.padding[i].clone()
        });
        let spatial = spatial.collect();
        let op = composite::ConvTranspose {
            strides: a.stride,
            dilations: a.dilation,
            pads_low: a.padding,
            spatial,
            groups: c.groups,
        };
        let y = self.graph.one(Op::Composite(op.into()), &[x, w])?;
        self.channel_bias(name, y, c, init)
    }

    fn channel_bias(&mut self, name: &str, y: ValueId, c: &Conv, init: Init) -> Result<ValueId> {
        if !c.bias {
            return Ok(y);
        }
        let b = self.parameter(&format!("{name}.bias"), &[c.outputs], init)?;
        let after: Vec<usize> = (1..=c.kernel.len()).collect();
        let b = self.graph.unsqueeze(b, &after)?;
        self.add(y, b)
    }
}
