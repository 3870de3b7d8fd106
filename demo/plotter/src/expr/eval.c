#include <math.h>
#include <stdlib.h>

#include "expr.h"

static double binary(char sign, double left, double right)
{
	switch (sign) {
	case '+':
		return left + right;
	case '-':
		return left - right;
	case '*':
		return left * right;
	case '/':
		return left / right;
	default:
		return pow(left, right);
	}
}

double expr_eval(const struct node *node, double x)
{
	switch (node->kind) {
	case NODE_NUMBER:
		return node->number;
	case NODE_X:
		return x;
	case NODE_NEGATE:
		return -expr_eval(node->left, x);
	case NODE_CALL:
		return node->function(expr_eval(node->left, x));
	default:
		return binary(node->sign, expr_eval(node->left, x), expr_eval(node->right, x));
	}
}

void expr_free(struct node *node)
{
	if (!node)
		return;
	expr_free(node->left);
	expr_free(node->right);
	free(node);
}
