// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Result is what came of an action.
type Result struct {
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"` // of a refused one
}

// Results are those of one version of an engine, as docs/frontends/NAME.json has them.
type Results struct {
	Name    string            `json:"-"`       // of the file: docker-26
	Engine  string            `json:"engine"`  // for which the list has actions: docker
	Version string            `json:"version"` // as the engine prints it
	Actions map[string]Result `json:"actions"` // by name
	Failed  map[string]string `json:"failed,omitempty"`
}

// Work is what Run does.
type Work struct {
	Results           // what there is before; Actions may be nil
	Dir        string // for files of the actions
	Runc, Coco Side
	Select     func(Action) bool // of the engine's actions
	Out        string            // directory of the results file, written after each action; "" for none
	Until      time.Time         // no action begins later; zero for no end
}

// Run does actions of an engine under both runtimes. report gets each error; such an action has no result.
func Run(ctx context.Context, w Work, report func(error)) {
	if w.Actions == nil {
		w.Actions = map[string]Result{}
	}
	if w.Failed == nil {
		w.Failed = map[string]string{}
	}
	for _, a := range Actions() {
		if !a.For(w.Engine) || !w.Select(a) {
			continue
		}
		if !w.Until.IsZero() && time.Now().After(w.Until) {
			return
		}
		began := time.Now()
		r, err := a.Compare(ctx, w.Engine, w.Dir, w.Runc, w.Coco)
		delete(w.Actions, a.Name)
		delete(w.Failed, a.Name)
		if err != nil {
			report(err)
			w.Failed[a.Name] = err.Error()
		} else {
			w.Actions[a.Name] = r
		}
		if w.Out == "" {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s: %s%s, after %s\n", w.Name, a.Name, r.Outcome, w.Failed[a.Name],
			time.Since(began).Round(time.Second/10))
		if err := w.write(w.Out); err != nil {
			report(err)
			return
		}
	}
}

// QuickWork is what CI runs.
func QuickWork(engine string) Work {
	return Work{Results: Results{Engine: engine}, Select: func(a Action) bool { return a.Quick }}
}

// Asked is the work that the environment asks for: COCO_FRONTENDS is the directory of the results,
// COCO_FRONTENDS_ONLY a regular expression of actions. With COCO_FRONTENDS_FOR, a duration, the work goes on where it
// stopped: it leaves out the actions that have a result or have failed, and begins none after that time.
func Asked(name, engine string) (Work, error) {
	w := Work{Results: Results{Name: name, Engine: engine}, Out: filepath.Clean(os.Getenv("COCO_FRONTENDS"))}
	only, err := regexp.Compile(os.Getenv("COCO_FRONTENDS_ONLY"))
	if err != nil {
		return w, fmt.Errorf("COCO_FRONTENDS_ONLY: %w", err)
	}
	if before, err := Read(w.Out, name); err == nil {
		w.Results = before
	} else if !errors.Is(err, os.ErrNotExist) {
		return w, err
	}
	w.forget()
	w.Select = func(a Action) bool { return only.MatchString(a.Name) }
	slice := os.Getenv("COCO_FRONTENDS_FOR")
	if slice == "" {
		return w, nil
	}
	d, err := time.ParseDuration(slice)
	if err != nil {
		return w, fmt.Errorf("COCO_FRONTENDS_FOR: %w", err)
	}
	w.Until = time.Now().Add(d)
	w.Select = func(a Action) bool {
		_, done := w.Actions[a.Name]
		_, failed := w.Failed[a.Name]
		return !done && !failed && only.MatchString(a.Name)
	}
	return w, nil
}

// forget drops results that the list no longer has like that.
func (r Results) forget() {
	want := map[string]string{}
	for _, a := range Actions() {
		if a.For(r.Engine) {
			want[a.Name] = a.want(r.Engine)
		}
	}
	for name, got := range r.Actions {
		if want[name] != got.Outcome {
			delete(r.Actions, name)
		}
	}
}

// write writes results to NAME.json in a directory.
func (r Results) write(dir string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("encode the results of %s: %w", r.Name, err)
	}
	return os.WriteFile(filepath.Join(dir, r.Name+".json"), b.Bytes(), 0o644)
}

// Read reads the results of a version of an engine.
func Read(dir, name string) (Results, error) {
	r := Results{Name: name}
	data, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err != nil {
		return r, fmt.Errorf("results of %s: %w", name, err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("results of %s: %w", name, err)
	}
	return r, nil
}

// ReadAll reads all results in a directory.
func ReadAll(dir string) ([]Results, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []Results
	for _, f := range files {
		r, err := Read(dir, strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
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
		if got, ok := r.Actions[a.Name]; ok && got.Outcome != a.want(r.Engine) {
			errs = append(errs, fmt.Errorf("%s: %s is %q in the results and %q in the list", r.Name, a.Name, got.Outcome,
				a.want(r.Engine)))
		}
	}
	for name := range r.Actions {
		if !known[name] {
			errs = append(errs, fmt.Errorf("%s: the results have %s, which the list has not", r.Name, name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Failed)) {
		errs = append(errs, fmt.Errorf("%s: %s", r.Name, r.Failed[name]))
	}
	return errors.Join(errs...)
}

const head = `# Docker, Podman and ctr beside runc, action by action

<!-- Made by make frontends from tests/frontends and docs/frontends/*.json. -->

What people do with Docker, Podman and ctr, done under runc and under coco in the same run, on platform ` + "`none`" + ` under QEMU: the same
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
		if in := engines(a, Same, all); len(in) > 0 {
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
				in = append(in, r.label())
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
		in := engines(a, outcome, all)
		if len(in) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |", cell(a.Name), strings.Join(in, ", "), cell(a.Differ.What),
			cell(a.Differ.WayOut))
		if outcome == Refused {
			fmt.Fprintf(b, " %s |", cell(message(a, all)))
		}
		b.WriteString("\n")
	}
}

// label is the engine in a row of the page: Docker 26.
func (r Results) label() string {
	version, _, _ := strings.Cut(r.Version, ".")
	return version
}

// engines are those with an outcome of an action.
func engines(a Action, outcome string, all []Results) []string {
	var out []string
	for _, r := range all {
		if got, ok := r.Actions[a.Name]; ok && got.Outcome == outcome {
			out = append(out, r.label())
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
