// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package strictjson

import (
	"strings"
	"testing"
)

func TestObjects(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":"x"}`:        "",
		" {\"a\":\"x\"}\n": "",
		`{"a":"x","b":1}`:  `unknown member "b"`,
		`{"A":"x"}`:        `unknown member "A"`,
		`{"a":1,"a":"x"}`:  `member "a" stands twice`,
		`{"a":"x"}{}`:      "text after the object",
		`{"a":"x"`:         "not JSON",
		`{"a":}`:           "not JSON",
		`["a"]`:            "not a JSON object",
		``:                 "not a JSON object",
		"{\"a\":\"\xff\"}": "not UTF-8",
		`{"a":1}`:          "a is no string",
		`{"a":null}`:       "a is no string",
		`{}`:               "no a",
	} {
		var got string
		m, err := Only([]byte(text), "a")
		if err == nil {
			err = m.Text("a", &got)
		}
		if want == "" && (err != nil || got != "x") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}
