// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mutate asks whether the tests of packages notice when a comparison in these packages is dropped, negated or
// moved. All mutants are compiled into one test program per tested package, each behind a number, so one run of a
// program with COCO_MUTANT=N is a test of mutant N. A mutant that no test fails for has survived. It needs a test, or a
// reason in the list: a line "KEY = REASON". The files are read with the go command's overlay; the tree is not changed.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

type options struct {
	code, tests []string // directories of packages
	reasons     string   // file
	report      string   // file; "": none
	only        []string // parts of the keys that are run; none: all
	jobs        int
	limit       time.Duration // of one run
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("mutate", flag.ContinueOnError)
	code := f.String("code", "policy/engine,policy/copies,policy/compare", "packages that are mutated")
	tests := f.String("tests", "policy/engine,policy/copies,policy/compare,policy/gen", "packages whose tests judge")
	f.StringVar(&o.reasons, "reasons", "", "file with the reasons of mutants that may survive")
	f.StringVar(&o.report, "report", "", "page to write")
	only := f.String("only", "", "run mutants whose keys have this text, and count the others as noticed")
	again := f.String("again", "", "likewise, with the lines of a file")
	f.IntVar(&o.jobs, "jobs", runtime.NumCPU(), "runs at a time")
	f.DurationVar(&o.limit, "limit", time.Minute, "time of one run, after which the mutant counts as noticed")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if *only != "" {
		o.only = []string{*only}
	}
	if *again != "" {
		text, err := os.ReadFile(*again)
		if err != nil {
			return o, err
		}
		o.only = append(o.only, strings.Split(strings.TrimSpace(string(text)), "\n")...)
	}
	o.code, o.tests = strings.Split(*code, ","), strings.Split(*tests, ",")
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	reasons, err := readReasons(o.reasons)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "coco-mutate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	all, overlay, err := prepare(dir, o.code)
	if err != nil {
		return err
	}
	list, err := build(ctx, dir, overlay, o)
	if err != nil {
		return err
	}
	fmt.Printf("%d mutants\n", len(all))
	survived, err := judge(ctx, all, list, o)
	if err != nil {
		return err
	}
	if o.report != "" {
		if err := os.WriteFile(o.report, page(all, survived, reasons, o), 0o644); err != nil { // a page
			return err
		}
	}
	return verdict(all, survived, reasons)
}

// verdict is an error if a mutant has survived without a reason, or a reason is of no use any more.
func verdict(all, survived []mutant, reasons map[string]string) error {
	alive := map[string]bool{}
	bad := 0
	for _, m := range survived {
		alive[m.key()] = true
		if reasons[m.key()] == "" {
			bad++
			fmt.Printf("SURVIVED %s:%d: %s\n", m.file, m.line, m.key())
		}
	}
	for key := range reasons {
		if !alive[key] {
			bad++
			fmt.Printf("NO LONGER %s\n", key)
		}
	}
	fmt.Printf("%d of %d survived, %d with a reason\n", len(survived), len(all), len(survived)-bad)
	if bad > 0 {
		return fmt.Errorf("%d mutants survived without a reason, or have a reason and do not survive", bad)
	}
	return nil
}

// readReasons reads lines "KEY = REASON"; lines with # are comments.
func readReasons(name string) (map[string]string, error) {
	out := map[string]string{}
	if name == "" {
		return out, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndex(line, "` = ")
		if at < 0 {
			return nil, fmt.Errorf("%s:%d: no line KEY = REASON", name, n)
		}
		out[line[:at+1]] = line[at+len("` = "):]
	}
	return out, lines.Err()
}

// probeFile is added to each mutated package. %s is its name, %d has the first and the number of its mutants.
const probeFile = `package %s

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

var (
	active__, _ = strconv.Atoi(os.Getenv("COCO_MUTANT"))
	record__    = os.Getenv("COCO_MUTANT_RECORD")
	once__      sync.Mutex
	seen__      = map[int]bool{}
)

func mutant__(n int) bool {
	if record__ == "" {
		return n == active__
	}
	once__.Lock()
	defer once__.Unlock()
	if !seen__[n] {
		seen__[n] = true
		f, err := os.OpenFile(record__, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(f, n)
		f.Close()
	}
	return false
}
`

// prepare writes the mutated files, and returns for the overlay which file stands for which.
func prepare(dir string, packages []string) ([]mutant, map[string]string, error) {
	var all []mutant
	overlay := map[string]string{}
	add := func(name string, text []byte) error {
		at := filepath.Join(dir, strings.ReplaceAll(name, "/", "+"))
		abs, err := filepath.Abs(name)
		if err != nil {
			return err
		}
		overlay[abs] = at
		return os.WriteFile(at, text, 0o600)
	}
	for _, p := range packages {
		names, err := filepath.Glob(p + "/*.go")
		if err != nil || len(names) == 0 {
			return nil, nil, errors.Join(err, fmt.Errorf("%s has no files", p))
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name) // of the tree
			if err != nil {
				return nil, nil, err
			}
			text, found, err := instrument(name, src, len(all))
			if err != nil {
				return nil, nil, err
			}
			all = append(all, found...)
			if err := add(name, text); err != nil {
				return nil, nil, err
			}
		}
		if err := add(p+"/"+probe+".go", fmt.Appendf(nil, probeFile, filepath.Base(p))); err != nil {
			return nil, nil, err
		}
	}
	number(all)
	return all, overlay, nil
}

// number tells apart mutants that would have the same key.
func number(all []mutant) {
	seen := map[string]int{}
	for i := range all {
		key := all[i].key()
		seen[key]++
		if n := seen[key]; n > 1 {
			all[i].what += fmt.Sprintf(" (%d)", n)
		}
	}
}

// judge runs the tests for each mutant and returns those that survived.
func judge(ctx context.Context, all []mutant, list []program, o options) ([]mutant, error) {
	var (
		mu       sync.Mutex
		survived []mutant
		failed   error
		wait     sync.WaitGroup
	)
	work := make(chan mutant)
	for range o.jobs {
		wait.Go(func() {
			for m := range work {
				noticed, err := m.noticed(ctx, list, o.limit)
				mu.Lock()
				failed = errors.Join(failed, err)
				if !noticed {
					survived = append(survived, m)
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range all {
		if ctx.Err() == nil && (len(o.only) == 0 || slices.ContainsFunc(o.only, func(s string) bool {
			return strings.Contains(m.key(), s)
		})) {
			work <- m
		}
	}
	close(work)
	wait.Wait()
	slices.SortFunc(survived, func(a, b mutant) int { return a.id - b.id })
	return survived, errors.Join(failed, ctx.Err())
}
