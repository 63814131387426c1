// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"slices"
	"testing"
)

func TestInsecureFilesAreFound(t *testing.T) {
	for text, want := range map[string]bool{
		"insecure = true\n":                         true,
		"# a comment\n\"insecure\"=true # so\n[t]":  true,
		"insecure = false\n":                        false,
		"insecure_x = true\n":                       false,
		"[token_configs.kbs]\ninsecure = true\n":    false,
		"# insecure = true\n":                       false,
		"a = 'x'\n\tinsecure\t=\ttrue\r\n[azure]\n": true,
	} {
		for _, name := range []string{FileAA, FileAzure} {
			got := (&Document{Data: map[string]string{name: text}}).Insecure()
			if want != slices.Equal(got, []string{name}) || !want && got != nil {
				t.Errorf("%s with %q: %q, want it listed: %v", name, text, got, want)
			}
		}
	}
	d := &Document{Data: map[string]string{FilePolicy: `{"pod":{"sealed":{"insecureUnsigned":true}}}`, "x": "insecure = true"}}
	if got := d.Insecure(); !slices.Equal(got, []string{FilePolicy}) {
		t.Errorf("Insecure() = %q, want the policy alone", got)
	}
}
