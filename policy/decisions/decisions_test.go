// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package decisions

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// read returns the lines for people.
func read(t *testing.T, l *Log) (out []string) {
	t.Helper()
	list, err := Parse(l.Text())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		out = append(out, d.String())
	}
	return out
}

func TestDecisionsAreKeptInTheirOrder(t *testing.T) {
	var none *Log
	none.Note("CreateSandbox", "", "", nil) // keeps nothing, and does not mind
	l := &Log{}
	l.Note("CreateSandbox", "", "", nil)
	for range 3 {
		l.Note("ReadStdout", "c", "c", nil)
		l.Note("StatsContainer", "c", "", errors.New("denied [capability] \"stats\"\nis <closed>"))
	}
	l.Note("ExecProcess", "c", "e\x1b[2J", nil)
	want := []string{
		"1 CreateSandbox: allowed", "2 ReadStdout c: 3 times allowed",
		`3 StatsContainer c: 3 times denied [capability] "stats" is <closed>`, "8 ExecProcess c e?[2J: allowed",
	}
	if got := read(t, l); !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
}

// TestTheLogIsBounded: a host that asks for ever finds the newest decisions, and the guest's memory is spared.
func TestTheLogIsBounded(t *testing.T) {
	l := &Log{}
	long := strings.Repeat(`"`, 4000)
	const asked = 5000
	for i := range asked {
		l.Note("CopyFile", fmt.Sprint(i)+long, long, errors.New(long))
	}
	got := l.Text()
	if len(got) > Most || len(got) < Most/4 {
		t.Errorf("the log has %d bytes, the bound is %d", len(got), Most)
	}
	list, err := Parse(got)
	if err != nil || list[len(list)-1].N != asked || len(list[0].Denied) != maxText || len(list[0].Container) != maxID {
		t.Errorf("the last of %d lines is %+v, %v", len(list), list[len(list)-1], err)
	}
	if _, err := Parse("{"); err == nil {
		t.Error("half a line is a decision")
	}
}

// TestAGuestCannotMoveTheCursor: a guest that was taken over may write anything into the log, escapes of JSON too.
func TestAGuestCannotMoveTheCursor(t *testing.T) {
	const odd = `x\u001b[2Jy`
	list, err := Parse(`{"n":1,"times":1,"kind":"` + odd + `","container":"` + odd + `","exec":"e` + odd + `","denied":"` +
		odd + `"}`)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if got, want := list[0].String(), "1 x?[2Jy x?[2Jy ex?[2Jy: x?[2Jy"; got != want {
		t.Errorf("it is printed as %q, want %q", got, want)
	}
}

// TestAllowedRequestsPushNoDenialOut: probes make new ids for ever.
func TestAllowedRequestsPushNoDenialOut(t *testing.T) {
	l := &Log{}
	l.Note("CreateContainer", "first", "", errors.New("denied"))
	for i := range 5000 {
		l.Note("ExecProcess", "c", fmt.Sprint("probe", i), nil)
	}
	got := read(t, l)
	if got[0] != "1 CreateContainer first: denied" || got[len(got)-1] != "5001 ExecProcess c probe4999: allowed" {
		t.Errorf("of %d lines the first is %q, the last %q", len(got), got[0], got[len(got)-1])
	}
	for i := range 5000 {
		l.Note("ExecProcess", "c", fmt.Sprint("stranger", i), errors.New("denied"))
	}
	if got = read(t, l); !slices.Contains(got, "5001 ExecProcess c probe4999: allowed") {
		t.Error("denials have pushed the last allowed request out")
	}
}
