// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// liar is a host whose guest writes raw frames; the host's frames are dropped.
func liar(t *testing.T) (*Dialer, net.Conn) {
	t.Helper()
	host, guest := sockets(t)
	d := NewDialer(host)
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = io.Copy(io.Discard, guest)
	}()
	t.Cleanup(func() {
		_ = guest.Close()
		_ = d.Close()
		<-over
	})
	return d, guest
}

func ended(t *testing.T, d *Dialer) {
	t.Helper()
	<-d.Done()
	if err := d.lost(); !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrLost) {
		t.Errorf("the channel ended with %v, want a protocol error", err)
	}
}

// Some 200,000 of these frames came in a second, and the shim was busy with nothing else.
func TestUselessFramesEndTheChannel(t *testing.T) {
	for name, h := range map[string]header{
		"empty data on a stream that is not there": {typeData, 0, 77, 0},
		"windows of a stream that is not there":    {typeWindow, 0, 77, 1 << 20},
		"windows of 0":                             {typeWindow, 0, 1, 0},
		"windows of 1":                             {typeWindow, 0, 1, 1},
		"acknowledgements":                         {typeWindow, flagACK, 1, 0},
		"pings":                                    {typePing, flagSYN, 0, 1},
		"answers to pings":                         {typePing, flagACK, 0, 1},
		"ends":                                     {typeWindow, flagFIN, 77, 0},
		"resets":                                   {typeData, flagRST, 77, 0},
		"departures":                               {typeGoAway, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d, guest := liar(t)
			block := bytes.Repeat(h.append(nil), 1000)
			for range 4000 { // the rate allows a thousandth of it
				if _, err := guest.Write(block); err != nil {
					break
				}
			}
			ended(t, d)
		})
	}
}

func TestUselessLinesOnTheControlStreamEndTheChannel(t *testing.T) {
	d, guest := liar(t)
	say := func(text []byte) bool {
		_, err := guest.Write(append(header{typeData, 0, 1, uint32(len(text))}.append(nil), text...))
		return err == nil
	}
	say([]byte("OK 0\n"))
	lines := bytes.Repeat([]byte("reset 4711\n"), 1000)
	for said := len(lines); said < initialWindow && say(lines); said += len(lines) {
		continue // as much as the first window holds
	}
	ended(t, d)
}

func TestBytesOfAStreamThatIsNotThereEndTheChannel(t *testing.T) {
	d, guest := liar(t)
	if _, err := guest.Write(header{typeData, 0, 77, 1}.append(nil)); err != nil {
		t.Fatal(err)
	}
	ended(t, d)
}

func TestAPeerThatEndsNoStreamsLosesTheChannel(t *testing.T) {
	d, _ := liar(t)
	for range maxLingering + 1 {
		_ = d.open(testPort).Close()
	}
	ended(t, d)
}

func TestStreamsThatThePeerEndsAreNotCounted(t *testing.T) {
	d, m := pair(t)
	l, err := m.Listen(testPort)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c, err := d.Dial(t.Context(), testPort)
		if err != nil {
			t.Fatal(err)
		}
		g, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, g); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	host, guest := dialled(t, d, l) // its answer comes after all ends
	if n := d.counted(); n != 0 {
		t.Errorf("%d streams are counted", n)
	}
	_, _ = host.Close(), guest.Close()
}

func dialled(t *testing.T, d *Dialer, l net.Listener) (host, guest net.Conn) {
	t.Helper()
	host, err := d.Dial(t.Context(), testPort)
	if err != nil {
		t.Fatal(err)
	}
	if guest, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return host, guest
}

func (l *link) counted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lingering
}

func TestAConnectionThatIsOnlyWrittenToKeepsNothing(t *testing.T) {
	d, m := pair(t)
	host, guest := connect(t, d, m)
	if _, err := guest.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	host.DropReads()
	if _, err := guest.Write(make([]byte, initialWindow-100)); err != nil {
		t.Fatal(err)
	}
	if err := guest.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(host); len(got) > len("before") || err != nil {
		t.Errorf("%d bytes are kept, %v", len(got), err)
	}
	if _, err := host.Write([]byte("on")); err != nil {
		t.Error(err)
	}
}

func TestNothingFollowsTheEndOfAStream(t *testing.T) {
	d, m := pair(t)
	host, guest := connect(t, d, m)
	if err := guest.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	guest.link.turn <- struct{}{}
	err := guest.write([]byte("late")) // as a writer that had the turn when the end was queued
	<-guest.link.turn
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("write = %v, want net.ErrClosed", err)
	}
	if got, err := io.ReadAll(host); len(got) != 0 || err != nil {
		t.Errorf("ReadAll = %q, %v", got, err)
	}
	if _, err := host.Write([]byte("the other way")); err != nil {
		t.Errorf("the channel: %v", err)
	}
}

func TestAFullQueueSaysSo(t *testing.T) {
	d, m := pair(t)
	l, err := m.Listen(testPort)
	if err != nil {
		t.Fatal(err)
	}
	for range backlog {
		if _, err := d.Dial(t.Context(), testPort); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Dial(t.Context(), testPort); !errors.Is(err, ErrFull) {
		t.Errorf("one more = %v, want ErrFull", err)
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Dial(t.Context(), testPort); err != nil {
		t.Errorf("after one was accepted = %v", err)
	}
}
