// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestTheResourceWithTheLogins(t *testing.T) {
	const want = "kbs:///default/credential/test"
	for text, want := range map[string]string{
		"[image]\n" + loginKey + " = \"" + want + "\"\n":                         want,
		"[image]\n" + loginKey + "='kbs:///default/credential/test'\n":           want,
		"image." + loginKey + " = \"kbs://kbs.example/default/credential/test\"": want,
		"image = {\"" + loginKey + "\" = \"/default/credential/test\"}":          want,
		"":                              "",
		"[image]\n" + loginKey:          "",
		"[image]\n" + loginKey + " = 7": "",
		"[image]\n" + loginKey + " = \"kbs:///default": "",
		"[image]\n" + loginKey + " = \"\"":             "",
	} {
		if got := loginResource(text); got != want {
			t.Errorf("loginResource(%q) = %q, want %q", text, got, want)
		}
	}
}
