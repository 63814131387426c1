// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/guest"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
)

const maxFile = 1 << 20

// getOptions are the flags of coco kbs get.
type getOptions struct {
	url, cert       string
	tee, program    string
	insecureSample  bool
	initdata        string
	key             string
	timeout         time.Duration
	out             string
	token, tokenKey bool
}

func getCommand() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get [REPOSITORY/TYPE/TAG]",
		Short: "Get a secret, as a guest does",
		Long: "Attests to a key broker (ours or CoCo's Trustee) and prints the secret, or with --token the broker's\n" +
			"token.\n\n" +
			"The evidence is that of this machine, or comes from a program: --evidence-program gets the\n" +
			"digest that the evidence must hold as its argument, 96 hexadecimal digits, and prints the TEE's evidence in\n" +
			"CoCo's JSON. Only the broker's certificate,\n" +
			"or its CA's, is trusted; no redirect is followed and no proxy is asked.\n\n" +
			"Exit status: 0 the secret is there, 1 usage or files, 2 no answer, 3 not the broker that was named, 4 the\n" +
			"evidence is refused, 5 the policy denies the secret, 6 there is no such secret, 7 no evidence.",
		Example: "  coco kbs get --url https://kbs.example:8080 --cert ca.pem \\\n" +
			"    --tee snp --evidence-program ./evidence default/db/key",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.url, "url", "", "the broker, such as https://kbs.example:8080")
	f.StringVar(&o.cert, "cert", "", "file with the broker's certificate or its CA's (PEM)")
	f.StringVar(&o.tee, "tee", "", "type of the evidence: snp, tdx, tpm")
	f.StringVar(&o.program, "evidence-program", "", "program that makes the evidence")
	f.BoolVar(&o.insecureSample, "insecure-sample", false,
		"send CoCo's sample evidence, which proves nothing; only a broker with --allow-insecure takes it")
	f.StringVar(&o.initdata, "initdata", "", "initdata document (TOML) that is sent with the evidence")
	f.StringVar(&o.key, "key", string(kbs.P256),
		"kind of the key: "+string(kbs.P256)+", "+string(kbs.P521)+", "+string(kbs.RSA))
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to try")
	f.StringVarP(&o.out, "out", "o", "", "write to this file, which only its owner may read, instead of stdout")
	f.BoolVar(&o.token, "token", false, "print the token instead of a secret")
	f.BoolVar(&o.tokenKey, "token-key", false, "with --token: print JSON with the token and the private key that it names")
	cli.Require(cmd, "url", "cert")
	return cmd
}

func (o *getOptions) run(cmd *cobra.Command, args []string) error {
	if o.token == (len(args) == 1) {
		return errors.New("kbs get takes either the path of a secret or --token")
	}
	if o.tokenKey && !o.token {
		return errors.New("--token-key goes with --token")
	}
	c, err := o.client(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer c.Close()
	out, err := o.get(cmd.Context(), c, args)
	if err != nil {
		return coded(err)
	}
	if o.out != "" {
		return cli.WriteSecret(o.out, out)
	}
	_, err = cmd.OutOrStdout().Write(out)
	return err
}

// client makes the client that the flags describe.
func (o *getOptions) client(stderr io.Writer) (*client.Client, error) {
	cfg := client.Config{URL: o.url, Key: kbs.Kind(o.key), Timeout: o.timeout}
	var err error
	if cfg.CertPEM, err = readFile(o.cert); err != nil {
		return nil, fmt.Errorf("--cert: %w", err)
	}
	if o.initdata != "" {
		text, err := readFile(o.initdata)
		if err != nil {
			return nil, fmt.Errorf("--initdata: %w", err)
		}
		cfg.InitData = string(text)
	}
	switch {
	case o.insecureSample && (o.tee != "" || o.program != ""):
		return nil, errors.New("--insecure-sample goes without --tee and --evidence-program")
	case o.insecureSample:
		fmt.Fprintln(stderr, "coco: insecure: sample evidence proves nothing about this machine")
		cfg.Attester = guest.InsecureSample{}
	case o.tee == "":
		return nil, errors.New("evidence needs --tee, and unless it is this machine's --evidence-program")
	case o.program == "":
		if cfg.Attester, err = guest.New("/", o.tee); err != nil {
			return nil, fmt.Errorf("--tee %s without --evidence-program: %w", o.tee, err)
		}
	default:
		cfg.Attester = program{o.tee, o.program, stderr}
	}
	return client.New(cfg)
}

func (o *getOptions) get(ctx context.Context, c *client.Client, args []string) ([]byte, error) {
	if !o.token {
		return c.Resource(ctx, args[0])
	}
	t, err := c.Token(ctx)
	if err != nil || !o.tokenKey {
		return []byte(t.JWT + "\n"), err
	}
	key, err := t.Key.PEM()
	if err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(map[string]string{"token": t.JWT, "tee_keypair": string(key)}, "", "  ")
	return append(out, '\n'), err
}

// program makes evidence by running a program.
type program struct {
	tee, path string
	stderr    io.Writer
}

// TEE returns the type that the caller named.
func (p program) TEE() string { return p.tee }

// Evidence runs the program.
func (p program) Evidence(ctx context.Context, digest []byte) (json.RawMessage, error) {
	cmd := exec.CommandContext(ctx, p.path, hex.EncodeToString(digest))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, p.stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.path, err)
	}
	if !json.Valid(out.Bytes()) {
		return nil, fmt.Errorf("%s: its output is no JSON", p.path)
	}
	return out.Bytes(), nil
}

// coded gives an error of the client its exit status.
func coded(err error) error {
	var e *client.Error
	if !errors.As(err, &e) {
		return err
	}
	return cli.Failure{Err: err, Code: map[client.Reason]int{
		client.Unavailable: 2, client.Untrusted: 3, client.Refused: 4, client.Denied: 5, client.NotFound: 6,
		client.NoEvidence: 7,
	}[e.Reason]}
}

// readFile reads a file of bounded length.
func readFile(path string) ([]byte, error) { return cli.ReadFile(path, maxFile) }
