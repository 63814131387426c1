// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command flakes reads the output of `go test -json`, in which a failed test may have been run again, and sums it up.
// A test that failed and then passed, or skipped, is flaky: its first failure is printed as FLAKED and written to a
// file, and the run counts as green, as gotestsum's exit code does. A test that failed each time is printed as a
// failure. So the last lines of a CI run are its findings.
//
// Usage: flakes -out FILE JSON…
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

func main() {
	out := flag.String("out", "", "file for the flaky tests, as a JSON list of {package, test, then, output}")
	flag.Parse()
	if err := run(os.Stdout, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "flakes:", err)
		os.Exit(1)
	}
}

// run reads the files, prints the findings and writes the flaky ones. A file that does not exist belongs to tests that
// were not reached.
func run(w io.Writer, out string, files []string) error {
	var r results
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = r.read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	flaked, failed := r.findings()
	for _, f := range failed {
		fmt.Fprintf(w, "--- FAIL: %s (%s)\n%s", f.Test, f.Package, f.Output)
	}
	for _, f := range flaked {
		fmt.Fprintf(w, "FLAKED %s (%s): failed, then %s alone. First failure:\n%s", f.Test, f.Package, f.Then, f.Output)
	}
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(flaked, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

// Finding is a top-level test that failed at least once.
type Finding struct {
	Package string `json:"package"`
	Test    string `json:"test"`
	Then    string `json:"then"`   // how its last run ended: passed, skipped or failed
	Output  string `json:"output"` // of its first failure, its subtests' included
}

// event is a line of test2json.
type event struct {
	Action, Package, Test, Output string
}

// results are the runs of each top-level test, in the order in which they began to fail.
type results struct {
	runs  map[[2]string]*runs
	order []*runs
}

type runs struct {
	Finding
	output strings.Builder // of the run that goes on
}

// read adds the events of one file.
func (r *results) read(f io.Reader) error {
	if r.runs == nil {
		r.runs = map[[2]string]*runs{}
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("line %d is no event of go test -json: %w", n, err)
		}
		if e.Test != "" {
			r.add(e)
		}
	}
	return lines.Err()
}

func (r *results) add(e event) {
	top, _, sub := strings.Cut(e.Test, "/")
	key := [2]string{e.Package, top}
	t := r.runs[key]
	if t == nil {
		t = &runs{Finding: Finding{Package: e.Package, Test: top}}
		r.runs[key] = t
	}
	switch {
	case e.Action == "output" && !strings.HasPrefix(e.Output, "=== "):
		t.output.WriteString(e.Output)
	case sub:
	case e.Action == "pass":
		t.Then = "passed"
		t.output.Reset()
	case e.Action == "skip":
		t.Then = "skipped"
		t.output.Reset()
	case e.Action == "fail":
		t.Then = "failed"
		if t.Output == "" {
			t.Output = text(t.output.String())
			r.order = append(r.order, t)
		}
		t.output.Reset()
	}
}

// text drops the lines that only name a failed test and ends with a line break.
func text(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(strings.TrimSpace(line), "--- FAIL: ") {
			b.WriteString(line)
		}
	}
	if b.Len() == 0 {
		return "    (it printed nothing)\n"
	}
	return strings.TrimSuffix(b.String(), "\n") + "\n"
}

// findings returns the tests that failed at first and not the last time, and those that failed each time.
func (r *results) findings() (flaked, failed []Finding) {
	flaked = []Finding{}
	for _, t := range r.order {
		if t.Then == "failed" {
			failed = append(failed, t.Finding)
		} else {
			flaked = append(flaked, t.Finding)
		}
	}
	return flaked, failed
}
