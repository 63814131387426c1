// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Result is what came of an action.
type Result struct {
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"` // of a refused one
}

// Results are those of one engine, as docs/frontends/ENGINE.json has them.
type Results struct {
	Engine  string            `json:"engine"`
	Version string            `json:"version"` // as the engine prints it
	Actions map[string]Result `json:"actions"` // by name
}

// Work is what Run does.
type Work struct {
	Engine     string
	Dir        string // for files of the actions
	Runc, Coco Side
	Select     func(Action) bool // of the engine's actions
}

// Run does actions of an engine under both runtimes and returns what came of them. report gets each error; such an
// action has no result.
func Run(ctx context.Context, w Work, report func(error)) Results {
	out := Results{Engine: w.Engine, Actions: map[string]Result{}}
	for _, a := range Actions() {
		if !a.For(w.Engine) || !w.Select(a) {
			continue
		}
		r, err := a.Compare(ctx, w.Dir, w.Runc, w.Coco)
		if err != nil {
			report(err)
			continue
		}
		out.Actions[a.Name] = r
	}
	return out
}

// Quick selects what CI runs.
func Quick(a Action) bool { return a.Quick }

// Asked selects the actions that COCO_FRONTENDS_ONLY names by a regular expression; without it, all.
func Asked() (func(Action) bool, error) {
	only, err := regexp.Compile(os.Getenv("COCO_FRONTENDS_ONLY"))
	if err != nil {
		return nil, fmt.Errorf("COCO_FRONTENDS_ONLY: %w", err)
	}
	return func(a Action) bool { return only.MatchString(a.Name) }, nil
}

// Write writes results to ENGINE.json in a directory. Results of actions that were not selected stay as they were.
func (r Results) Write(dir string, selected func(Action) bool) error {
	before, err := Read(dir, r.Engine)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, a := range Actions() {
		if old, ok := before.Actions[a.Name]; ok && a.For(r.Engine) && !selected(a) {
			r.Actions[a.Name] = old
		}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results of %s: %w", r.Engine, err)
	}
	return os.WriteFile(filepath.Join(dir, r.Engine+".json"), append(data, '\n'), 0o644)
}

// Read reads the results of an engine.
func Read(dir, engine string) (Results, error) {
	var r Results
	data, err := os.ReadFile(filepath.Join(dir, engine+".json"))
	if err != nil {
		return r, fmt.Errorf("results of %s: %w", engine, err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("results of %s: %w", engine, err)
	}
	return r, nil
}

// check compares results with the list: none has another outcome than the list, and none is of no action.
func (r Results) check() error {
	var errs []error
	known := map[string]bool{}
	for _, a := range Actions() {
		if !a.For(r.Engine) {
			continue
		}
		known[a.Name] = true
		if got, ok := r.Actions[a.Name]; ok && got.Outcome != a.want() {
			errs = append(errs, fmt.Errorf("%s: %s is %q in the results and %q in the list", r.Engine, a.Name, got.Outcome,
				a.want()))
		}
	}
	for name := range r.Actions {
		if !known[name] {
			errs = append(errs, fmt.Errorf("%s: the results have %s, which the list has not", r.Engine, name))
		}
	}
	return errors.Join(errs...)
}

const head = `# Docker and Podman beside runc, action by action

<!-- Made by make frontends from tests/frontends and docs/frontends/*.json. -->

What people do with Docker and Podman, done under runc and under coco in the same run, on platform ` + "`none`" + ` under QEMU: the same
output and the same exit status, or a row below. ` + "`make frontends`" + ` does all of it and writes this page; CI does a few of the actions on
every change.

`

// Page is docs/frontends.md.
func Page(all ...Results) string {
	var b strings.Builder
	b.WriteString(head)
	b.WriteString("| engine | actions | as under runc | refused | different |\n|---|---|---|---|---|\n")
	for _, r := range all {
		n := map[string]int{}
		for _, a := range r.Actions {
			n[a.Outcome]++
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", r.Version, len(r.Actions), n[Same], n[Refused], n[Differs])
	}
	b.WriteString("\n## Refused, with an error at the time of the command\n\n" +
		"| action | engines | why | way out | the error |\n|---|---|---|---|---|\n")
	rows(&b, Refused, all)
	b.WriteString("\n## Different\n\n| action | engines | what and why | way out |\n|---|---|---|---|\n")
	rows(&b, Differs, all)
	b.WriteString("\n## As under runc\n\n")
	for _, a := range Actions() {
		if in := engines(a, all); a.Differ == nil && len(in) > 0 {
			fmt.Fprintf(&b, "- %s (%s)\n", cell(a.Name), strings.Join(in, ", "))
		}
	}
	missing(&b, all)
	return b.String()
}

// missing lists the actions that an engine has no result of.
func missing(b *strings.Builder, all []Results) {
	var lines []string
	for _, a := range Actions() {
		var in []string
		for _, r := range all {
			if _, ok := r.Actions[a.Name]; a.For(r.Engine) && !ok {
				in = append(in, r.Engine)
			}
		}
		if len(in) > 0 {
			lines = append(lines, fmt.Sprintf("- %s (%s)\n", cell(a.Name), strings.Join(in, ", ")))
		}
	}
	if len(lines) > 0 {
		b.WriteString("\n## Not tried yet\n\nThe list has these actions, and `make frontends` was not run to its end since " +
			"they came into it. Other tests cover many of them ([docker](docker.md), [podman](podman.md)):\n\n" +
			strings.Join(lines, ""))
	}
}

func rows(b *strings.Builder, outcome string, all []Results) {
	for _, a := range Actions() {
		if a.want() != outcome || len(engines(a, all)) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |", cell(a.Name), strings.Join(engines(a, all), ", "), cell(a.Differ.What),
			cell(a.Differ.WayOut))
		if outcome == Refused {
			fmt.Fprintf(b, " %s |", cell(message(a, all)))
		}
		b.WriteString("\n")
	}
}

func engines(a Action, all []Results) []string {
	var out []string
	for _, r := range all {
		if _, ok := r.Actions[a.Name]; ok {
			out = append(out, r.Engine)
		}
	}
	slices.Sort(out)
	return out
}

func message(a Action, all []Results) string {
	for _, r := range all {
		if got := r.Actions[a.Name].Error; got != "" {
			return got
		}
	}
	return ""
}

// cell is a text in a table.
func cell(s string) string { return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(s) }
