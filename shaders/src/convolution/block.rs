//! Convolutions of few channels: several results for each thread, which share what they read.

use std::fmt::Write as _;

use crate::template::fill;

/// Results of a thread, along the last two axes, with the windows that they are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Along the last axis but one.
    pub down: u32,
    /// Along the last.
    pub across: u32,
    /// Distance of windows along both.
    pub strides: [u32; 2],
    /// Distance of elements in a window along both.
    pub dilations: [u32; 2],
}

/// Products of a thread for each input channel beyond which its text would be long.
const MOST_PRODUCTS: u32 = 400;

impl Block {
    /// Number of results.
    pub fn len(&self) -> u32 {
        self.down * self.across
    }

    /// Whether it has no result, which none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Input elements that a thread reads for each channel, for a kernel of these lengths.
    pub fn reads(&self, kernel: [u32; 2]) -> u32 {
        self.used(0, kernel[0]).len() as u32 * self.used(1, kernel[1]).len() as u32
    }

    /// Whether there is a text for a kernel of these lengths.
    pub fn suits(&self, kernel: [u32; 2]) -> bool {
        let products = [kernel[0], kernel[1], self.down, self.across]
            .iter()
            .try_fold(1u32, |all, &len| all.checked_mul(len));
        products.is_some_and(|products| (1..=MOST_PRODUCTS).contains(&products))
    }

    /// Results along an axis: 0 for the last but one, 1 for the last.
    fn outs(&self, axis: usize) -> u32 {
        [self.down, self.across][axis]
    }

    /// Distance of the input that kernel position `at` of result `out` reads from that of the first.
    fn reach(&self, axis: usize, out: u32, at: u32) -> u32 {
        out * self.strides[axis] + at * self.dilations[axis]
    }

    /// All those distances along an axis, in order.
    fn used(&self, axis: usize, kernel: u32) -> Vec<u32> {
        let mut used: Vec<u32> = (0..self.outs(axis))
            .flat_map(|out| (0..kernel).map(move |at| self.reach(axis, out, at)))
            .collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// The results and kernel positions along an axis that read at a distance.
    fn users(&self, axis: usize, kernel: u32, reach: u32) -> impl Iterator<Item = (u32, u32)> {
        let block = *self;
        (0..self.outs(axis))
            .flat_map(move |out| (0..kernel).map(move |at| (out, at)))
            .filter(move |&(out, at)| block.reach(axis, out, at) == reach)
    }

    /// The entry point over values of type `value`, for kernels of these lengths along the last two axes.
    pub(super) fn product(&self, value: &str, kernel: [u32; 2]) -> String {
        fill(
            include_str!("../../wgsl/convolution_block.wgsl"),
            &[
                ("V", value),
                ("DOWN", &self.down.to_string()),
                ("ACROSS", &self.across.to_string()),
                ("STRIDE_Y", &self.strides[0].to_string()),
                ("STRIDE_Z", &self.strides[1].to_string()),
                ("SETUP", &self.setup(value, kernel)),
                ("MULTIPLY", &self.multiply(value, kernel)),
                ("FINISH", &self.finish()),
            ],
        )
    }

    /// Sums, and where each column of the input lies.
    fn setup(&self, value: &str, kernel: [u32; 2]) -> String {
        let mut code = String::new();
        for (down, across) in self.results() {
            let _ = writeln!(code, "    var sum_{down}_{across} = {value}();");
        }
        for z in self.used(1, kernel[1]) {
            let _ = writeln!(
                code,
                "    let z_{z} = bitcast<u32>(first_z + {z}i);
    let inside_{z} = z_{z} < params.source[2].x;
    let column_{z} = z_{z} * params.source[2].y;"
            );
        }
        code
    }

    /// Reads the weights of a plane, then its lines one after the other.
    fn multiply(&self, value: &str, kernel: [u32; 2]) -> String {
        let mut code = String::new();
        for y in 0..kernel[0] {
            for z in 0..kernel[1] {
                let _ = writeln!(
                    code,
                    "                let weight_{y}_{z} = {value}(load_weight(weights + {y}u * params.source[1].z \
                     + {z}u * params.source[2].z));"
                );
            }
        }
        for y in self.used(0, kernel[0]) {
            let _ = writeln!(
                code,
                "                {{
                    let at_y = bitcast<u32>(first_y + {y}i);
                    let inside = at_y < params.source[1].x;
                    let line = plane + at_y * params.source[1].y;"
            );
            for z in self.used(1, kernel[1]) {
                let _ = writeln!(
                    code,
                    "                    let value_{z} = input_or_zero(inside && inside_{z}, line + column_{z});"
                );
                for (down, at_y) in self.users(0, kernel[0], y) {
                    for (across, at_z) in self.users(1, kernel[1], z) {
                        let _ = writeln!(
                            code,
                            "                    sum_{down}_{across} += weight_{at_y}_{at_z} * value_{z};"
                        );
                    }
                }
            }
            code.push_str("                }\n");
        }
        code
    }

    fn finish(&self) -> String {
        let mut code = String::new();
        for (down, across) in self.results() {
            let _ = writeln!(
                code,
                "    if out_y + {down}u < params.window[1].w && out_z + {across}u < params.window[2].w {{
        let line = out_x * params.window[1].w + out_y + {down}u;
        finish_at(batch, channel, image, line * params.window[2].w + out_z + {across}u, sum_{down}_{across});
    }}"
            );
        }
        code
    }

    fn results(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let across = self.across;
        (0..self.down).flat_map(move |y| (0..across).map(move |z| (y, z)))
    }
}
