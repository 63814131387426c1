// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package katarego evaluates policies that are written for Kata's agent: Rego of version 0 or 1 in package
// agent_policy, as genpolicy makes it, with the same input, the same results and the same state.
//
// Compile checks a text once. Ask evaluates the rule that has the name of a request's message (CreateContainerRequest)
// and returns a Decision. It changes nothing. The caller has the request handled and then calls Commit, which applies
// the changes of state that the rule has asked for (Kata's agent applies them before).
//
// Nothing that is undefined, fails, has another type or takes too long allows a request. A policy that sets
// AllowRequestsFailingPolicy, which turns this around, is refused. Policies have functions of their arguments only, and
// none of the network, the clock, the environment or chance.
//
// Evaluation is bounded by the caller's context. Nothing here bounds memory: that is for the process. The package links
// OPA, which is large, so the agent does not import it.
package katarego

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/internal/words"
)

// fileName is the file of initdata that has such a policy.
const fileName = "policy.rego"

// Names in the policy's documents.
const (
	packageName = "agent_policy"
	stateKey    = "pstate"    // of the state, as in Kata's agent
	dataKey     = "coco_base" // of the policy's data; no policy knows the name
	failOpen    = "AllowRequestsFailingPolicy"
)

// Limits of a policy.
const (
	MaxText  = 1 << 20 // of its text; initdata has no more
	maxState = 1 << 20 // of its state, as text
)

// Policy is a compiled policy with its state. Its methods may be called by several goroutines.
type Policy struct {
	compiler *ast.Compiler
	data     storage.Store

	mu sync.Mutex // held while the state changes
}

// Decision is the answer to a request. The zero value denies.
type Decision struct {
	Allowed bool
	Reason  string // why not, in one line of at most 1 KiB
	ops     *ast.Term
}

// Compile checks a policy and prepares it.
func Compile(ctx context.Context, text string) (p *Policy, err error) {
	defer caught(&err)
	if len(text) > MaxText {
		return nil, fmt.Errorf("the policy has more than %d bytes", MaxText)
	}
	if err := shallow(text); err != nil {
		return nil, err
	}
	rules, data := cut(text)
	module, err := parse(rules)
	if err != nil {
		return nil, err
	}
	if want := ast.DefaultRootRef.Append(ast.StringTerm(packageName)); !module.Package.Path.Equal(want) {
		return nil, fmt.Errorf("the policy belongs to %s, and Kata's belong to data.%s", module.Package.Path, packageName)
	}
	c := ast.NewCompiler().WithCapabilities(capabilities()).WithEnablePrintStatements(true)
	if c.Compile(map[string]*ast.Module{fileName: module}); c.Failed() {
		return nil, fmt.Errorf("%s: %w", fileName, shorten(c.Errors))
	}
	p = &Policy{compiler: c, data: inmem.NewFromASTObject(ast.NewObject(
		[2]*ast.Term{ast.StringTerm(stateKey), ast.ObjectTerm()},
		[2]*ast.Term{ast.StringTerm(dataKey), ast.NewTerm(data)},
	))}
	v, _, err := p.eval(ctx, failOpen, ast.NewObject())
	if err != nil {
		return nil, err
	}
	if v != nil && !v.Equal(ast.InternedTerm(false)) {
		return nil, fmt.Errorf("the policy sets %s, which allows what the policy denies: set it to false", failOpen)
	}
	return p, nil
}

// caught turns a panic of the library into an error: a text of a policy ends no program.
func caught(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the evaluation broke down: %.200v\n%.2000s", r, debug.Stack())
	}
}

// parse reads Rego of version 0, which genpolicy writes and Kata's agent expects, or else of version 1.
func parse(text string) (*ast.Module, error) {
	o := ast.ParserOptions{Capabilities: capabilities(), RegoVersion: ast.RegoV0}
	m, err := ast.ParseModuleWithOpts(fileName, text, o)
	if err == nil {
		return m, nil
	}
	o.RegoVersion = ast.RegoV1
	m, err1 := ast.ParseModuleWithOpts(fileName, text, o)
	if err1 == nil {
		return m, nil
	}
	return nil, fmt.Errorf("as Rego v0: %w; as Rego v1: %w", shortened(err), shortened(err1))
}

// shortened returns the first of a list of errors.
func shortened(err error) error {
	var list ast.Errors
	if errors.As(err, &list) {
		return shorten(list)
	}
	return err
}

func shorten(list ast.Errors) error {
	if len(list) == 0 {
		return errors.New("unknown error")
	}
	err := fmt.Errorf("%.400s", list[0].Error())
	if len(list) > 1 {
		err = fmt.Errorf("%w (and %d more)", err, len(list)-1)
	}
	return err
}

// Ask decides about a request. An error means that the policy could not be evaluated, which denies it as well.
func (p *Policy) Ask(ctx context.Context, m proto.Message) (Decision, error) {
	name, input, err := Input(m)
	if err != nil {
		return Decision{}, err
	}
	return p.AskAbout(ctx, name, input)
}

// AskAbout decides about a request in its JSON form: the name of its message and the values of package encoding/json.
func (p *Policy) AskAbout(ctx context.Context, name string, input any) (d Decision, err error) {
	defer caught(&err)
	v, err := ast.InterfaceToValue(input)
	if err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	answer, printed, err := p.eval(ctx, name, v)
	if err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	if d.Allowed, d.ops, err = verdict(answer); err == nil && d.ops != nil {
		_, err = p.patched(ctx, d.ops)
	}
	if err != nil {
		return Decision{}, fmt.Errorf("%s: %w", name, err)
	}
	if !d.Allowed {
		d.Reason = words.Line(name+" is blocked by policy: "+printed, maxReason)
	}
	return d, nil
}

// verdict reads the value of a rule: true, false, or an object with "allowed" and, if it likes, "ops".
func verdict(v *ast.Term) (allowed bool, ops *ast.Term, err error) {
	if v == nil {
		return false, nil, errors.New("the policy does not say: the rule is not there or undefined")
	}
	switch v := v.Value.(type) {
	case ast.Boolean:
		return bool(v), nil, nil
	case ast.Object:
		a := v.Get(ast.StringTerm("allowed"))
		if a == nil {
			break
		}
		allowed, ok := a.Value.(ast.Boolean)
		if !ok {
			break
		}
		if ops = v.Get(ast.StringTerm("ops")); ops != nil && ops.Equal(ast.NullTerm()) {
			ops = nil
		}
		if ops != nil && ast.ValueName(ops.Value) != "array" {
			break
		}
		if !allowed {
			ops = nil
		}
		return bool(allowed), ops, nil
	}
	return false, nil, fmt.Errorf(`the rule's value is neither a boolean nor {"allowed": boolean, "ops": list}: %.100s`,
		ast.ValueName(v.Value))
}

// answerVar is the variable of a query that gets the rule's value.
const answerVar = ast.Var("answer")

// eval evaluates a rule. Without a value it is undefined. printed is the end of its prints.
func (p *Policy) eval(ctx context.Context, rule string, input ast.Value) (v *ast.Term, printed string, err error) {
	ref := ast.DefaultRootRef.Append(ast.StringTerm(packageName)).Append(ast.StringTerm(rule))
	body := ast.NewBody(ast.Equality.Expr(ast.NewTerm(answerVar), ast.NewTerm(ref)))
	qc := p.compiler.QueryCompiler()
	compiled, err := qc.Compile(body)
	if err != nil {
		return nil, "", err
	}
	txn, err := p.data.NewTransaction(ctx)
	if err != nil {
		return nil, "", err
	}
	defer p.data.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	stop := context.AfterFunc(ctx, cancel.Cancel)
	defer stop()
	hook := &tail{}
	q := topdown.NewQuery(compiled).WithQueryCompiler(qc).WithCompiler(p.compiler).WithStore(p.data).
		WithTransaction(txn).WithCancel(cancel).WithInput(ast.NewTerm(input)).WithPrintHook(hook)
	err = q.Iter(ctx, func(r topdown.QueryResult) error {
		v = r[answerVar]
		return nil
	})
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("the policy took too long: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, "", err
	}
	return v, hook.String(), nil
}

// Commit applies the changes of state of a request that was allowed and handled. After an error the state is unknown,
// and nothing more may be asked.
func (p *Policy) Commit(ctx context.Context, d Decision) (err error) {
	defer caught(&err)
	if !d.Allowed || d.ops == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	state, err := p.patched(ctx, d.ops)
	if err != nil {
		return err
	}
	txn, err := p.data.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return err
	}
	if err := p.data.Write(ctx, txn, storage.ReplaceOp, storage.Path{stateKey}, state); err != nil {
		p.data.Abort(ctx, txn)
		return err
	}
	return p.data.Commit(ctx, txn)
}

// patched returns the state after a JSON patch (RFC 6902), which sees the state alone.
func (p *Policy) patched(ctx context.Context, ops *ast.Term) (ast.Value, error) {
	old, err := storage.ReadOne(ctx, p.data, storage.Path{stateKey})
	if err != nil {
		return nil, err
	}
	value, err := ast.InterfaceToValue(old)
	if err != nil {
		return nil, err
	}
	root := ast.NewTerm(ast.NewObject([2]*ast.Term{ast.StringTerm(stateKey), ast.NewTerm(value)}))
	var out *ast.Term
	patch := topdown.GetBuiltin(ast.JSONPatch.Name)
	if err := patch(topdown.BuiltinContext{}, []*ast.Term{root, ops}, func(t *ast.Term) error {
		out = t
		return nil
	}); err != nil {
		return nil, fmt.Errorf("patch the state: %w", err)
	}
	if out == nil {
		return nil, errors.New("the patch of the state does not apply")
	}
	object, ok := out.Value.(ast.Object)
	if !ok || object.Len() != 1 || object.Get(ast.StringTerm(stateKey)) == nil {
		return nil, fmt.Errorf("the patch changes more than the state, which is below /%s", stateKey)
	}
	state := object.Get(ast.StringTerm(stateKey)).Value
	if n := len(state.String()); n > maxState {
		return nil, fmt.Errorf("the state would have %d bytes, more than %d", n, maxState)
	}
	return state, nil
}
