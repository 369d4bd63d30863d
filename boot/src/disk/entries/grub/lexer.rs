//! GRUB's script as statements of words (GRUB's manual, *Shell-like scripting*).

/// Stands for a dollar sign that is no variable's.
pub(super) const DOLLAR: char = '\u{1}';

/// The statements of `text`, each of at least one word; braces are words, and a closing one is a statement.
pub(super) fn statements(text: &str) -> impl Iterator<Item = Vec<String>> + '_ {
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || {
        let mut words: Vec<String> = Vec::new();
        let mut word: Option<String> = None;
        while let Some(c) = chars.next() {
            match c {
                '\'' => {
                    let quoted = chars.by_ref().take_while(|c| *c != '\'');
                    word.get_or_insert_default().extend(quoted.map(|c| if c == '$' { DOLLAR } else { c }));
                }
                '"' => {
                    let word = word.get_or_insert_default();
                    while let Some(c) = chars.next().filter(|c| *c != '"') {
                        match (c, chars.peek()) {
                            ('\\', Some(&next @ ('"' | '\\' | '$'))) => {
                                word.push(if next == '$' { DOLLAR } else { next });
                                chars.next();
                            }
                            _ => word.push(c),
                        }
                    }
                }
                '\\' => match chars.next() {
                    None | Some('\n') => {}
                    Some(next) => word.get_or_insert_default().push(if next == '$' { DOLLAR } else { next }),
                },
                '$' if chars.peek() == Some(&'{') => {
                    let word = word.get_or_insert_default();
                    word.push('$');
                    word.extend(chars.by_ref().take_while(|c| *c != '}' && *c != '\n'));
                    word.push('}');
                }
                '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
                ' ' | '\t' | '\r' => words.extend(word.take()),
                '\n' | ';' => {
                    words.extend(word.take());
                    if !words.is_empty() {
                        return Some(words);
                    }
                }
                '{' if word.is_none() => {
                    words.push("{".into());
                    return Some(words);
                }
                '}' if word.is_none() && words.is_empty() => return Some(vec!["}".into()]),
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        (!words.is_empty()).then_some(words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_words() {
        for (text, parsed) in [
            ("set a=b # not this\n\n  c\td;e\\ f", "set|a=b / c|d / e f"),
            (
                "menuentry 'It'\\''s $x' --class \"a \\\"b\\\" $c\" {\n x\n}",
                "menuentry|It's \u{1}x|--class|a \"b\" $c|{ / x / }",
            ),
            ("a ${b c}d$e; }", "a|${b c}d$e / }"),
            ("two \\\nlines '' \"", "two|lines||"),
            ("x'", "x"),
        ] {
            let statements: Vec<_> = statements(text).map(|words| words.join("|")).collect();
            assert_eq!(statements.join(" / "), parsed, "{text}");
        }
    }
}
