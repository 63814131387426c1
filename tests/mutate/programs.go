// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// program is the tests of a package, or those of them that are slow.
type program struct {
	file, dir string
	args      []string
	reached   map[int]bool // mutants whose code the tests come to
}

// slow is how long a test takes that runs after the quick ones of its package.
const slow = 300 * time.Millisecond

// build compiles the tests with all mutants, and finds out which tests are slow and which mutants they reach. Quick
// tests of all packages come first, since most mutants are noticed by them.
func build(ctx context.Context, dir string, overlay map[string]string, o options) ([]program, error) {
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return nil, err
	}
	replace := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(replace, text, 0o600); err != nil {
		return nil, err
	}
	var quick, late []program
	for _, p := range o.tests {
		if names, err := filepath.Glob(p + "/*_test.go"); err != nil || len(names) == 0 {
			continue
		}
		file := filepath.Join(dir, strings.ReplaceAll(p, "/", "+")+".test")
		out, err := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", replace, "-o", file, "./"+p).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("compile the tests of %s: %w\n%s", p, err, out)
		}
		names, err := slowTests(ctx, program{file: file, dir: p})
		if err != nil {
			return nil, err
		}
		few := program{file: file, dir: p}
		if len(names) > 0 {
			these := "^(" + strings.Join(names, "|") + ")$"
			few.args = []string{"-test.skip", these}
			late = append(late, program{file: file, dir: p, args: []string{"-test.run", these}})
		}
		quick = append(quick, few)
	}
	list := slices.Concat(quick, late)
	for i := range list {
		if list[i].reached, err = reach(ctx, list[i], filepath.Join(dir, "reached"+strconv.Itoa(i))); err != nil {
			return nil, err
		}
	}
	return list, nil
}

var passed = regexp.MustCompile(`(?m)^--- PASS: (\w+) \(([0-9.]+)s\)`)

// slowTests runs all tests without a mutant.
func slowTests(ctx context.Context, p program) ([]string, error) {
	out, err := p.command(ctx, "-test.v").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("the tests of %s fail without a mutant: %w\n%s", p.dir, err, out)
	}
	var names []string
	for _, m := range passed.FindAllSubmatch(out, -1) {
		if s, err := strconv.ParseFloat(string(m[2]), 64); err == nil && s > slow.Seconds() {
			names = append(names, string(m[1]))
		}
	}
	return names, nil
}

// reach finds out which mutants the tests of a program come to.
func reach(ctx context.Context, p program, record string) (map[int]bool, error) {
	cmd := p.command(ctx)
	cmd.Env = append(os.Environ(), "COCO_MUTANT_RECORD="+record)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the tests of %s fail while their reach is recorded: %w\n%s", p.dir, err, out)
	}
	text, err := os.ReadFile(record) // made above
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := map[int]bool{}
	for line := range bytes.Lines(text) {
		n, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", record, err)
		}
		out[n] = true
	}
	return out, nil
}

func (p program) command(ctx context.Context, more ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.file, append(append([]string{"-test.failfast"}, p.args...), more...)...)
	cmd.Dir = p.dir
	return cmd
}

// noticed says whether a test fails for a mutant, or does not end.
func (m mutant) noticed(ctx context.Context, list []program, limit time.Duration) (bool, error) {
	for _, p := range list {
		if !p.reached[m.id] {
			continue
		}
		cmd := p.command(ctx, "-test.timeout", limit.String())
		cmd.Env = append(os.Environ(), "COCO_MUTANT="+strconv.Itoa(m.id))
		var failed *exec.ExitError
		switch err := cmd.Run(); {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.As(err, &failed):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("test mutant %d: %w", m.id, err)
		}
	}
	return false, nil
}
