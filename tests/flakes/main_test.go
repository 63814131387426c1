// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program is a package with a test of each kind. Flaky and Shy fail until their marks exist.
const program = `package p

import (
	"os"
	"testing"
)

func TestGood(t *testing.T) { t.Log("nothing to see") }

func TestBad(t *testing.T) { t.Error("always wrong") }

func TestFlaky(t *testing.T) {
	t.Run("sub", func(t *testing.T) {
		if _, err := os.Stat("mark"); err != nil {
			os.WriteFile("mark", nil, 0o600)
			t.Error("wrong the first time")
		}
	})
}

func TestShy(t *testing.T) {
	if _, err := os.Stat("shy"); err == nil {
		t.Skip("not twice")
	}
	os.WriteFile("shy", nil, 0o600)
	t.Error("wrong, then skipped")
}
`

// goTest runs real tests that fail, and appends what they say to a file.
func goTest(t *testing.T, dir, out, which string) {
	t.Helper()
	cmd := exec.Command("go", "test", "-json", "-count=1", "-run", which, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	b, err := cmd.Output() // it fails: that is what is read
	if len(b) == 0 {
		t.Fatalf("go test printed nothing: %v", err)
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestAFlakyTestIsNamedWithItsFirstFailure(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{"go.mod": "module p\n\ngo 1.26\n", "p_test.go": program} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, flakes := filepath.Join(dir, "all.json"), filepath.Join(dir, "flakes.json")
	goTest(t, dir, all, ".")
	goTest(t, dir, all, "^TestFlaky$")
	goTest(t, dir, all, "^TestShy$")
	goTest(t, dir, all, "^TestBad$")

	var said bytes.Buffer
	if err := run(&said, flakes, []string{all, filepath.Join(dir, "not-reached.json")}); err != nil {
		t.Fatal(err)
	}
	want := "--- FAIL: TestBad (p)\n    p_test.go:10: always wrong\n" +
		"FLAKED TestFlaky (p): failed, then passed alone. First failure:\n    p_test.go:16: wrong the first time\n" +
		"FLAKED TestShy (p): failed, then skipped alone. First failure:\n    p_test.go:26: wrong, then skipped\n"
	if got := said.String(); got != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got, want)
	}
	b, err := os.ReadFile(flakes)
	if err != nil {
		t.Fatal(err)
	}
	var found []Finding
	if err := json.Unmarshal(b, &found); err != nil || len(found) != 2 || found[0].Test != "TestFlaky" ||
		found[0].Then != "passed" || found[1].Test != "TestShy" || found[1].Then != "skipped" {
		t.Errorf("%s says %s (%v), want TestFlaky and TestShy", flakes, b, err)
	}
}

func TestWhatIsNoEventIsRefused(t *testing.T) {
	var r results
	if err := r.read(strings.NewReader("{}\nFAIL\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v, want an error that names line 2", err)
	}
}
