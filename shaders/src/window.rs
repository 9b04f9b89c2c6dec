//! Arguments larger than one binding: several bindings see a window of the memory each, and accessors choose among them.

/// How the memory of a buffer argument is divided over bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Windows {
    /// Bindings, one after the other; at least one.
    pub count: u32,
    /// Bytes of every window but the last, as a power of two; at least 4. Not looked at for a single window.
    pub size_log2: u32,
    /// Bytes of the first window before the argument's first element, a multiple of 16 and less than a window.
    pub start: u32,
}

impl Windows {
    /// All of it in one binding.
    pub const ONE: Self = Self {
        count: 1,
        size_log2: 0,
        start: 0,
    };
}

/// Atomic functions on words that accessors call: name, parameters after the word, result.
const ATOMICS: [(&str, &[&str], &str); 6] = [
    ("atomicLoad", &[], "u32"),
    ("atomicStore", &["a"], ""),
    ("atomicAdd", &["a"], "u32"),
    ("atomicAnd", &["a"], "u32"),
    ("atomicOr", &["a"], "u32"),
    ("atomicCompareExchangeWeak", &["a", "b"], "Exchanged"),
];

/// Memory in windows, as its accessors reach it: by the number of an item of the whole.
///
/// For one window that is the array itself; for several, functions that end in the buffer's name.
pub(crate) struct Windowed<'a> {
    /// Name of the buffer.
    pub name: &'a str,
    /// The windows.
    pub windows: Windows,
}

impl Windowed<'_> {
    /// Expression that reads the item with this number.
    pub fn read(&self, at: &str) -> String {
        match self.windows.count {
            1 => format!("{}[{at}]", self.name),
            _ => format!("read_{}({at})", self.name),
        }
    }

    /// Statement that writes the item with this number.
    pub fn write(&self, at: &str, value: &str) -> String {
        match self.windows.count {
            1 => format!("{}[{at}] = {value};", self.name),
            _ => format!("write_{}({at}, {value});", self.name),
        }
    }

    /// Call of one of the [`ATOMICS`] on the item with this number.
    pub fn atomic(&self, function: &str, at: &str, operands: &[&str]) -> String {
        let operands: String = operands.iter().map(|value| format!(", {value}")).collect();
        match self.windows.count {
            1 => format!("{function}(&{}[{at}]{operands})", self.name),
            _ => format!("{function}_{}({at}{operands})", self.name),
        }
    }

    /// Expression for the number of items, of `size` bytes each.
    pub fn len(&self, size: u32) -> String {
        let Windows {
            count,
            size_log2,
            start,
        } = self.windows;
        match count {
            1 => format!("arrayLength(&{})", self.name),
            _ => {
                let before = ((count - 1) << (size_log2 - size.ilog2())) - start / size;
                format!("arrayLength(&{}_{}) + {before}u", self.name, count - 1)
            }
        }
    }

    /// Declares the memory from `@binding(position)` on, as arrays of `item`, which has `size` bytes.
    pub fn declaration(
        &self,
        position: usize,
        item: &str,
        size: u32,
        written: bool,
        mode: &str,
    ) -> String {
        let name = self.name;
        let variable = |at: usize, name: &str| {
            format!("@group(0) @binding({at}) var<storage, {mode}> {name}: array<{item}>;\n")
        };
        if self.windows.count == 1 {
            return variable(position, name);
        }
        let mut text: String = (0..self.windows.count)
            .map(|window| variable(position + window as usize, &format!("{name}_{window}")))
            .collect();
        if item == "atomic<u32>" {
            text.push_str(&self.atomics(size));
        } else {
            let read = self.choice(size, |place| format!("return {place};"));
            text.push_str(&format!("fn read_{name}(at: u32) -> {item} {{\n{read}}}\n"));
            if written {
                let write = self.choice(size, |place| format!("{place} = value;"));
                text.push_str(&format!(
                    "fn write_{name}(at: u32, value: {item}) {{\n{write}}}\n"
                ));
            }
        }
        text
    }

    fn atomics(&self, size: u32) -> String {
        let name = self.name;
        let mut text = format!("struct Exchanged_{name} {{ old_value: u32, exchanged: bool }}\n");
        for (function, operands, result) in ATOMICS {
            let parameters: String = operands
                .iter()
                .map(|name| format!(", {name}: u32"))
                .collect();
            let operands: String = operands.iter().map(|name| format!(", {name}")).collect();
            let (result, body) = match result {
                "" => (String::new(), self.choice(size, |place| format!("{function}(&{place}{operands});"))),
                "u32" => (" -> u32".to_owned(), self.choice(size, |place| format!("return {function}(&{place}{operands});"))),
                structure => (
                    format!(" -> {structure}_{name}"),
                    self.choice(size, |place| {
                        format!("let r = {function}(&{place}{operands}); return {structure}_{name}(r.old_value, r.exchanged);")
                    }),
                ),
            };
            text.push_str(&format!(
                "fn {function}_{name}(at: u32{parameters}){result} {{\n{body}}}\n"
            ));
        }
        text
    }

    /// A switch over the windows; `statement` is given the place of item `at` in one of them.
    fn choice(&self, size: u32, statement: impl Fn(&str) -> String) -> String {
        let Windows {
            count,
            size_log2,
            start,
        } = self.windows;
        let shift = size_log2 - size.ilog2();
        let (mask, first) = ((1u32 << shift) - 1, start / size);
        let mut text = format!("    let i = at + {first}u;\n    switch i >> {shift}u {{\n");
        for window in 0..count {
            let label = match window + 1 == count {
                true => "default".to_owned(),
                false => format!("case {window}u"),
            };
            let statement = statement(&format!("{}_{window}[i & {mask}u]", self.name));
            text.push_str(&format!("        {label}: {{ {statement} }}\n"));
        }
        text.push_str("    }\n");
        text
    }
}
