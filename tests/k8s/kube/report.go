// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// Report is a comparison of runtimes, spec by spec. It grows by runs: a spec that is run again replaces what was known.
type Report struct {
	Kubernetes string            `json:"kubernetes"`
	Containerd map[string]string `json:"containerd"` // by runtime
	Commit     map[string]string `json:"commit"`     // of this repository, by runtime: the last run
	Specs      []*Row            `json:"specs"`
}

// Row is one spec under each runtime.
type Row struct {
	Group  string           `json:"group"`
	Name   string           `json:"name"`
	Result map[string]Entry `json:"result"` // by runtime
}

// Entry is a spec's end under one runtime.
type Entry struct {
	State   string  `json:"state"`
	Seconds float64 `json:"seconds"`
	Failure string  `json:"failure,omitempty"`
}

// ReadReport reads a report; a missing file is an empty one.
func ReadReport(file string) (*Report, error) {
	r := &Report{Kubernetes: Version, Containerd: map[string]string{}, Commit: map[string]string{}}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// Add takes the results of a run.
func (r *Report) Add(runtime, containerd, commit string, group Group, specs []Spec) {
	r.Containerd[runtime], r.Commit[runtime] = containerd, commit
	rows := map[string]*Row{}
	for _, row := range r.Specs {
		rows[row.Name] = row
	}
	for _, s := range specs {
		row := rows[s.Name]
		if row == nil {
			row = &Row{Group: group.Name, Name: s.Name, Result: map[string]Entry{}}
			rows[s.Name] = row
			r.Specs = append(r.Specs, row)
		}
		row.Group = group.Name
		row.Result[runtime] = Entry{State: s.State, Seconds: s.Seconds, Failure: s.Failure}
	}
}

func (r *Report) sort() {
	sort.SliceStable(r.Specs, func(i, j int) bool {
		a, b := r.Specs[i], r.Specs[j]
		return a.Group < b.Group || a.Group == b.Group && a.Name < b.Name
	})
}

// groupOf is the group that runs a spec.
func groupOf(name string) string {
	for _, g := range Groups {
		if regexp.MustCompile(g.Focus).MatchString(name) && !regexp.MustCompile(g.Skip).MatchString(name) {
			return g.Name
		}
	}
	return ""
}

// Passed are the specs that have passed under a runtime.
func (r *Report) Passed(runtime string) []string {
	var names []string
	for _, row := range r.Specs {
		if row.Result[runtime].State == "passed" {
			names = append(names, row.Name)
		}
	}
	return names
}

// Write writes report.json and report.md into dir.
func (r *Report) Write(dir string) error {
	for _, row := range r.Specs {
		if g := groupOf(row.Name); g != "" {
			row.Group = g
		}
	}
	r.sort()
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "report.json"), append(data, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.markdown()), 0o644))
}

// Lost are the specs that pass under runc and not under coco.
func (r *Report) Lost() []*Row {
	var lost []*Row
	for _, row := range r.Specs {
		c, ran := row.Result["coco"]
		if row.Result["runc"].State == "passed" && ran && c.State != "passed" {
			lost = append(lost, row)
		}
	}
	return lost
}

func (r *Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance: runc and coco, spec by spec\n\nMade by `make k8s-test`; do not edit. Kubernetes %s; ",
		r.Kubernetes)
	for _, rt := range []string{"runc", "coco"} {
		fmt.Fprintf(&b, "%s under containerd %s at commit %s; ", rt, or(r.Containerd[rt], "–"), or(r.Commit[rt], "–"))
	}
	fmt.Fprintf(&b, "\n\n| group | specs | runc passed | coco passed | passed under runc only |\n|---|---|---|---|---|\n")
	type sum struct{ all, runc, coco, lost int }
	sums, total := map[string]*sum{}, &sum{}
	var groups []string
	for _, row := range r.Specs {
		if sums[row.Group] == nil {
			sums[row.Group] = &sum{}
			groups = append(groups, row.Group)
		}
		for _, s := range []*sum{sums[row.Group], total} {
			s.all++
			runc, coco := row.Result["runc"].State == "passed", row.Result["coco"].State == "passed"
			s.runc += count(runc)
			s.coco += count(coco)
			_, ran := row.Result["coco"]
			s.lost += count(runc && ran && !coco)
		}
	}
	for _, g := range groups {
		s := sums[g]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", g, s.all, s.runc, s.coco, s.lost)
	}
	fmt.Fprintf(&b, "| **all** | %d | %d | %d | %d |\n\n| spec | runc | s | coco | s |\n|---|---|---|---|---|\n",
		total.all, total.runc, total.coco, total.lost)
	for _, row := range r.Specs {
		fmt.Fprintf(&b, "| %s |", strings.ReplaceAll(strings.TrimSuffix(row.Name, " [Conformance]"), "|", `\|`))
		for _, rt := range []string{"runc", "coco"} {
			e, ok := row.Result[rt]
			if !ok {
				b.WriteString(" – | |")
				continue
			}
			state := e.State
			if state != "passed" {
				state = "**" + state + "**"
			}
			fmt.Fprintf(&b, " %s | %.0f |", state, e.Seconds)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
