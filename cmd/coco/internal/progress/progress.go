// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package progress shows the steps of long work on a terminal as bars, and elsewhere as a line each.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// Shown shows steps.
type Shown interface {
	// Step begins a step of total units, 0: unknown.
	Step(title string, total int64) Task
	// Wait ends the display, after the last step is done.
	Wait()
}

// Task is a step that goes on.
type Task interface {
	Set(done int64)
	Done(err error)
}

// New shows steps on w: as bars if it is a terminal.
func New(w io.Writer) Shown {
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return &bars{p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))}
		}
	}
	return &lines{w: w}
}

// lines writes a line when a step begins and one when it fails.
type lines struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lines) Step(title string, _ int64) Task {
	l.print(title)
	return lineTask{l, title}
}

func (l *lines) print(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintln(l.w, s) // progress only
}

func (l *lines) Wait() {}

type lineTask struct {
	l     *lines
	title string
}

func (t lineTask) Set(int64) {}

func (t lineTask) Done(err error) {
	if err != nil {
		t.l.print(t.title + ": not done")
	}
}

// bars draws with mpb.
type bars struct{ p *mpb.Progress }

func (b *bars) Step(title string, total int64) Task {
	if r := []rune(title); len(r) > 60 {
		title = string(r[:59]) + "…"
	}
	name := mpb.PrependDecorators(decor.Name(title, decor.WCSyncSpaceR))
	if total == 0 {
		return barTask{b.p.AddSpinner(0, name)}
	}
	return barTask{b.p.AddBar(total, name, mpb.AppendDecorators(decor.Percentage()))}
}

func (b *bars) Wait() { b.p.Wait() }

type barTask struct{ bar *mpb.Bar }

func (t barTask) Set(n int64) { t.bar.SetCurrent(n) }

func (t barTask) Done(err error) {
	if err != nil {
		t.bar.Abort(false)
		return
	}
	t.bar.SetTotal(-1, true)
}
