//! Named substitutions in WGSL text.

/// Replaces every `${name}` in `text` by the value given for `name`. Values may hold further `${...}` of their own, which
/// are left alone: each value goes in once, as it is.
///
/// # Panics
/// On a name without a value and on a value that no name asks for: both are mistakes in this crate's own templates, and
/// its tests instantiate every one of them.
pub fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut used = vec![false; values.len()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after
            .split_once('}')
            .unwrap_or_else(|| unreachable!("bug: unclosed substitution in a template"));
        let position = values
            .iter()
            .position(|(key, _)| *key == name)
            .unwrap_or_else(|| unreachable!("bug: template asks for `{name}`"));
        out.push_str(before);
        out.push_str(values[position].1);
        used[position] = true;
        rest = after;
    }
    out.push_str(rest);
    if let Some(position) = used.iter().position(|used| !used) {
        unreachable!("bug: no template text uses `{}`", values[position].0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn values_replace_names() {
        assert_eq!(
            fill("a ${x} ${y}${x}", &[("x", "1"), ("y", "${x}")]),
            "a 1 ${x}1"
        );
        assert_eq!(fill("none", &[]), "none");
    }
}
