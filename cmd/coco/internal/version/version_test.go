// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package version

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestTheStampedVersionIsPreferred(t *testing.T) {
	for _, c := range []struct{ name, stamped, recorded, want string }{
		{"make build", "v0.2.0-3-g1234567", "(devel)", "v0.2.0-3-g1234567"},
		{"make build in a module that go knows", "v0.2.0", "v0.1.9", "v0.2.0"},
		{"go install at a version", "dev", "v0.2.0", "v0.2.0"},
		{"go build without version control", "dev", "(devel)", "dev"},
		{"a test", "dev", "", "dev"},
	} {
		if got := choose(c.stamped, c.recorded); got != c.want {
			t.Errorf("%s: choose(%q, %q) = %q, want %q", c.name, c.stamped, c.recorded, got, c.want)
		}
	}
}

func TestBothFormsTellTheSameVersion(t *testing.T) {
	want := Get()
	if got := run(t); got != "coco "+want.Version+"\n" {
		t.Errorf("coco version = %q, want %q", got, want.Version)
	}
	var got Info
	if text := run(t, "--json"); json.Unmarshal([]byte(text), &got) != nil || got != want {
		t.Errorf("coco version --json = %s, want %+v", text, want)
	}
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
