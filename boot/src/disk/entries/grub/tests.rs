use super::*;

/// As `grub-mkconfig` of Debian 12 and 13 writes it, in short.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-7d' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd0,gpt1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1  7d
	else
	  search --no-floppy --fs-uuid --set=root 7d
	fi
	echo	'Loading Linux 6.1.0-9-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=7d ro  quiet $vt_handoff
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-9-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-7d' {
	menuentry 'Debian, with Linux 6.1.0-9' --class debian $menuentry_id_option 'gnulinux-9' {
		linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=7d ro  quiet
		initrd	/boot/initrd.img-6.1.0-9-amd64
	}
	menuentry 'Debian, with Linux 6.1.0-8' --class debian $menuentry_id_option 'gnulinux-8' {
		linux	/boot/vmlinuz-6.1.0-8-amd64 root=UUID=7d ro "dyndbg=\"file a +p\""
		initrd	/boot/initrd.img-6.1.0-8-amd64 /boot/second
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
"#;

fn kernel(text: &str, env: &[(&str, &str)]) -> Option<String> {
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    chosen(text, &env).unwrap().map(|entry| entry.kernel)
}

#[test]
fn the_default_entry_of_debian() {
    let entry = chosen(DEBIAN, &Env::new()).unwrap().unwrap();
    assert_eq!(entry.title, "Debian GNU/Linux");
    assert_eq!(entry.kernel, "/boot/vmlinuz-6.1.0-9-amd64");
    assert_eq!(entry.initrds, ["/boot/initrd.img-6.1.0-9-amd64"]);
    assert_eq!(entry.options, "root=UUID=7d ro quiet");
}

#[test]
fn another_default_is_found_by_number_title_and_id() {
    let old = "/boot/vmlinuz-6.1.0-8-amd64";
    for (default, is_old) in [
        ("1>1", true),
        ("gnulinux-advanced-7d>gnulinux-8", true),
        ("Advanced options for Debian GNU/Linux>Debian, with Linux 6.1.0-8", true),
        ("1", false),
        ("1>gone", false),
        ("2", false),
        ("gone", false),
        ("", false),
        ("99", false),
    ] {
        let text = DEBIAN.replace("default=\"0\"", "default=\"${saved_entry}\"");
        let found = kernel(&text, &[("saved_entry", default), ("next_entry", "1>1")]).unwrap();
        assert_eq!(found == old, is_old, "{default}");
    }
    let entry = chosen(&DEBIAN.replace("\"0\"", "'1>1'"), &Env::new()).unwrap().unwrap();
    assert_eq!(entry.initrds, ["/boot/initrd.img-6.1.0-8-amd64", "/boot/second"]);
    assert_eq!(entry.options, "root=UUID=7d ro dyndbg=\"file a +p\"");
}

#[test]
fn variables_are_of_the_environment_first() {
    let text = "set kernelopts=\"root=/dev/sda1 ro\"\nset k=/vmlinuz\nmenuentry x {\n linux ($root)$k-5 $kernelopts '$x'\n}\n";
    let env = Env::from([("kernelopts".into(), "root=UUID=7 rw quiet".into())]);
    let entry = chosen(text, &env).unwrap().unwrap();
    assert_eq!((&entry.kernel[..], &entry.options[..]), ("()/vmlinuz-5", "root=UUID=7 rw quiet $x"));
}

#[test]
fn of_an_entry_with_a_condition_the_first_way_counts() {
    let ubuntu = "menuentry 'Ubuntu' {\n if [ \"${initrdfail}\" = 1 ]; then\n linux /boot/vmlinuz-5 root=PARTUUID=7 ro console=tty1 \
                  console=ttyS0\n initrd /boot/initrd.img-5\n else\n linux /boot/vmlinuz-5 root=PARTUUID=7 panic=-1\n fi\n}";
    let entry = chosen(ubuntu, &Env::new()).unwrap().unwrap();
    assert_eq!(
        (entry.initrds.len(), &entry.options[..]),
        (1, "root=PARTUUID=7 ro console=tty1 console=ttyS0")
    );
}

#[test]
fn what_is_no_menu_is_none() {
    for text in [
        "",
        "}}}{{{",
        "menuentry",
        "menuentry x {",
        "linux /k",
        "blscfg\n",
        "function f {\n linux /k\n}",
        "set default",
    ] {
        assert_eq!(kernel(text, &[]), None, "{text}");
    }
    assert_eq!(kernel("menuentry x { linux /k", &[]).as_deref(), Some("/k"));
    assert!(matches!(chosen(&"submenu x {\n".repeat(40), &Env::new()), Err(Error::TooMuch { .. })));
    let bomb = "set a=0123456789\n".to_owned() + &"set a=$a$a\n".repeat(40_000);
    assert!(matches!(chosen(&bomb, &Env::new()), Err(Error::TooMuch { .. })));
}

#[test]
fn a_function_is_not_looked_at_wherever_its_brace_is() {
    let menu = "menuentry a {\n linux /a\n}\nmenuentry b {\n linux /b\n}\n";
    for function in ["function f {\n", "function f\n{\n", "function f\n\n{ "] {
        let text = format!("{function}set default=1\nmenuentry x {{\n linux /x\n}}\n}}\n{menu}");
        assert_eq!(kernel(&text, &[]).as_deref(), Some("/a"), "{function}");
    }
}

#[test]
fn a_statement_may_follow_a_condition_on_its_line() {
    let menu = "menuentry a {\n linux /a\n}\nmenuentry b {\n linux /b\n}\n";
    for condition in [
        "if true; then set default=1; fi\n",
        "if true\nthen default=1\nfi\n",
        "if true; then\nelse set default=1; fi\n",
    ] {
        assert_eq!(kernel(&format!("{condition}{menu}"), &[]).as_deref(), Some("/b"), "{condition}");
    }
}

#[test]
fn a_variable_is_assigned_with_set_or_without() {
    for (text, command) in [
        ("set k=/a", "/a-1 "),
        ("k=/a", "/a-1 "),
        ("k='/a b'", "/a b-1"),
        ("set k=/a\nk=/b", "/b-1 "),
        ("set k=/a\nset k\nk", "/a-1 "),
        ("export k", "-1 "),
        ("k=/a\nk=", "-1 "),
    ] {
        let text = format!("{text}\nmenuentry x {{\n linux $k-1\n}}\n");
        let entry = chosen(&text, &Env::new()).unwrap().unwrap();
        assert_eq!(format!("{} {}", entry.kernel, entry.options), command, "{text}");
    }
}

#[test]
fn there_are_so_many_variables_and_no_more() {
    let text: String = (0..=VARIABLES_MAX).map(|n| format!("v{n}=/{n}\n")).collect();
    let last = VARIABLES_MAX - 1;
    let value = |n: usize| kernel(&format!("{text}menuentry x {{\n linux k$v{n}\n}}\n"), &[]).unwrap();
    assert_eq!((value(0), value(last), value(last + 1)), ("k/0".into(), format!("k/{last}"), "k".into()));
}

#[test]
fn variables_put_so_many_characters_anywhere_and_no_more() {
    // From 16 to 16384 by doubling, which is together 16 less than twice the last.
    let mut text = "a=0123456789abcdef\n".to_owned() + &"a=$a$a\n".repeat(10);
    text += &"b=$a\n".repeat(EXPANDED_MAX / 16384 - 2);
    let with = |last: &str| chosen(&format!("{text}c={last}\n"), &Env::new());
    for last in ["", "0123456789abcde", "0123456789abcdef"] {
        assert_eq!(with(last).unwrap(), None, "{last}");
    }
    let error = with("0123456789abcdefg").unwrap_err();
    assert_eq!(error.to_string(), "the disk has too much in its grub.cfg");
}
